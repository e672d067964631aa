"""Every shell script of the repository is clean by shellcheck."""

import shutil
import subprocess

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
