"""Every shell script of the repository is clean by shellcheck."""

import os
import shutil
import subprocess
import sys

import pytest
from tiny_runs import ROOT

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
