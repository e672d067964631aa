"""Every shell script of the repository is clean by shellcheck."""

import os
import shutil
import subprocess
import sys

import pytest
from tiny_runs import ROOT

from pretrain.recipe.parsing import parse

SCRIPTS = sorted(
    path
    for pattern in ("slurm/*.sh", "slurm/*.sbatch", "tests/slurm/*.sh", ".ci/run")
    for path in ROOT.glob(pattern)
)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    assert len(SCRIPTS) >= 9
    # A template is sourced from the repository's root, as it is submitted from there.
    done = subprocess.run(
        ["shellcheck", "--external-sources", *SCRIPTS], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_a_container_reaches_every_srun(tmp_path):
    """Without pyxis no srun takes these options: what is shown is that they are given."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(sys.executable)
    fake = tmp_path / "bin/srun"
    fake.write_text('#!/bin/bash\nprintf "%s\\n" "srun: $*" >>"$CALLS"\nexit 0\n')
    fake.chmod(0o755)
    script = """
        set -euo pipefail
        VENV=$1; source slurm/preamble.sh
        RECIPE=r.yaml RANKS_PER_NODE=1 MAX_EXCLUDED=1 ASKED=""
        use_container; preflight --a b; train_on_nodes --a b
    """
    environment = {**os.environ, "CALLS": str(tmp_path / "calls"), "CONTAINER": "image.sqsh"}
    environment |= {"SLURM_JOB_NAME": "x", "SLURM_JOB_ID": "1", "SLURM_NNODES": "1"}
    subprocess.run(
        ["bash", "-c", script, "bash", tmp_path], cwd=ROOT, env=environment, check=True, timeout=60
    )
    calls = (tmp_path / "calls").read_text().splitlines()
    calls = [line for line in calls if line.startswith("srun: ")]
    assert len(calls) == 2
    for call in calls:
        assert f"--container-image=image.sqsh --container-mounts={ROOT}:{ROOT} " in call
        assert f"--container-workdir={ROOT}" in call


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "tiny.yaml names nothing to evaluate"),
        (("--evaluation.setz.a", "b"), "did you mean 'sets'?"),
        (("--evaluation.sets.held_out", "data/held_out"), None),
        (("--evaluation.abilities", "true", "--", "--vocab-size", "400"), None),
    ],
)
def test_the_pipeline_submits_nothing_where_nothing_is_evaluated(options, told, tmp_path):
    """Without a cluster: what is shown is whether sbatch is called."""
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin/sbatch"
    fake.write_text('#!/bin/bash\necho "$*" >>"$CALLS"\necho 7\n')
    fake.chmod(0o755)
    environment = {**os.environ, "VENV": sys.prefix, "CALLS": str(tmp_path / "calls")}
    environment["PATH"] = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    words = ("corpus.parquet", tmp_path / "set", "pretrain/recipes/tiny.yaml", tmp_path / "run")
    done = subprocess.run(
        ["slurm/pipeline.sh", *words, *options],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == (2 if told else 0), done.stderr
    if told:
        assert told in done.stderr and done.stderr.count("\n") == 1, done.stderr
        assert not (tmp_path / "calls").exists()
    else:
        jobs = (tmp_path / "calls").read_text().splitlines()
        assert [line.split("--job-name=")[1].split()[0] for line in jobs] == [
            "prep", "pretrain", "evaluate", "export",
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "more", "wanted"),
    [
        ("run_dir: runs/x", (), "runs/x"),
        ('run_dir: "runs/x"', (), "runs/x"),
        ("run_dir: 'runs/x y'  # quoted", (), "runs/x y"),
        ("run_dir: runs/x  # the big disk", (), "runs/x"),
        ("run_dir: runs/a#b", (), "runs/a#b"),
        ('"run_dir" : runs/x\r', (), "runs/x"),
        ("# mine\nrun_dir:   runs/x   ", (), "runs/x"),
        ("run_dir: runs/x", ("--run_dir", "runs/y"), "runs/y"),
        ("run_dir: runs/x", ("--run-dir=runs/y",), "runs/y"),
        ("run_dir: runs/x", ("--config", "later.yaml"), "runs/later"),
        ("run_dir: runs/x", ("--config=plain.yaml", "--seed", "1"), "runs/x"),
        ("run_dir: runs/z", ("--run_dir=runs/y", "--config", "later.yaml"), "runs/y"),
    ],
)
def test_the_run_folder_is_the_one_that_training_uses(tmp_path, line, more, wanted):
    """Else a job that goes on would be taken for one that stands still."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(sys.executable)
    recipe = tmp_path / "recipe.yaml"
    tiny = (ROOT / "pretrain/recipes/tiny.yaml").read_text().replace("run_dir: runs/tiny\n", "")
    recipe.write_bytes((line + "\n" + tiny).encode())
    (tmp_path / "later.yaml").write_text("run_dir: 'runs/later' # moved\n")
    (tmp_path / "plain.yaml").write_text("seed: 3\n")
    words = [str(tmp_path / w) if w.endswith(".yaml") and "=" not in w else w for w in more]
    words = [w.replace("=plain", f"={tmp_path}/plain") for w in words]
    script = (
        'VENV=$1; source slurm/preamble.sh; shift; check_pretrain_request "$@"; echo "$RUN_DIR"'
    )
    done = subprocess.run(
        ["bash", "-euc", script, "bash", tmp_path, recipe, *words],
        cwd=ROOT,
        env={**os.environ, "SLURM_JOB_NAME": "x"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1:] == [wanted], done.stderr
    parsed, _ = parse(["--config", str(recipe), *words])
    assert str(parsed.run_dir) == wanted
