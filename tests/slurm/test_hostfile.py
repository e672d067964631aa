"""Several hosts without Slurm: the deepspeed launcher, a hostfile and ssh."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import TESTBED, Cluster
from conftest import require
from slurm_runs import RECIPE, assert_same_losses, overrides

pytestmark = pytest.mark.slurm
PACKAGES, COMMANDS = ("pdsh", "openssh-server", "openssh-client"), ("pdsh", "sshd", "ssh")


@pytest.fixture
def ssh(cluster: Cluster, tmp_path: Path) -> Iterator[str]:
    """What ssh needs to reach the nodes, which answer to a key of this test's own."""
    require(PACKAGES, COMMANDS)
    for name in ("host_key", "key"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)]
        subprocess.run(command, check=True)
    Path("/run/sshd").mkdir(exist_ok=True)
    served = [f"-oAuthorizedKeysFile={tmp_path}/key.pub", "-oStrictModes=no", "-oPidFile=none"]
    daemons = [
        subprocess.Popen(
            [
                *(TESTBED, "on", cluster.testbed, node, str(shutil.which("sshd")), "-D"),
                *(f"-h{tmp_path}/host_key", *served),
            ]
        )
        for node in ("node1", "node2")
    ]
    yield f"-i {tmp_path}/key -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
    for daemon in daemons:
        daemon.terminate()


@pytest.mark.soak
def test_a_hostfile_of_two_hosts_gives_the_losses_of_one(
    cluster: Cluster, ssh: str, tiny_dataset: Path, undisturbed: Path, tmp_path: Path
):
    hostfile, run_dir = tmp_path / "hostfile", tmp_path / "run"
    hostfile.write_text("node1 slots=1\nnode2 slots=1\n")
    # Of this shell's variables the launcher hands over NCCL_*, PYTHON* and those of this file.
    (tmp_path / "environment").write_text("DS_ACCELERATOR=cpu\nOMP_NUM_THREADS=1\n")
    done = subprocess.run(
        [
            *(TESTBED, "on", cluster.testbed, "node1"),
            *(Path(sys.executable).with_name("deepspeed"), "--hostfile", hostfile),
            *("--master_addr", "node1", "--no_ssh_check", "--no_local_rank"),
            *("--module", "pretrain.train", "--config", RECIPE),
            *overrides(tiny_dataset, run_dir),
        ],
        cwd=cluster.checkout,
        env={
            **os.environ,
            "DS_ACCELERATOR": "cpu",
            "DS_ENV_FILE": str(tmp_path / "environment"),
            "PDSH_SSH_ARGS_APPEND": ssh,
        },
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "node1: " in done.stdout
    assert_same_losses(run_dir, undisturbed)
