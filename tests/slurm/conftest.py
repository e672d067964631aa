"""A real Slurm of two pretend nodes on this machine, for the length of the test session."""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cluster import TESTBED, Cluster
from slurm_runs import ROOT, train_without_slurm

PACKAGES = ("munge", "slurmctld", "slurmd", "slurm-client", "iproute2", "util-linux")
COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "ip", "nsenter")
INSTALL_TIMEOUT_S = 150


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two idle nodes, and a checkout whose code is this one's and whose logs are its own."""
    with started(tmp_path_factory.mktemp("checkout")) as cluster:
        yield cluster


@pytest.fixture
def spare_cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Two nodes of which a test may kill one."""
    with started(tmp_path / "checkout") as cluster:
        yield cluster


@contextmanager
def started(checkout: Path) -> Iterator[Cluster]:
    require_slurm()
    checkout.mkdir(exist_ok=True)
    for room in ("pretrain", "data_prep", "ds_configs", "benchmarks"):
        (checkout / room).symlink_to(ROOT / room)
    shutil.copytree(ROOT / "slurm", checkout / "slurm", ignore=shutil.ignore_patterns("*.out"))
    # Not under pytest's own folder: a socket's path is short.
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        up = subprocess.run([TESTBED, "up", folder], capture_output=True, text=True)
        if up.returncode == 3:
            pytest.skip(up.stderr)
        assert up.returncode == 0, up.stderr
        try:
            yield Cluster(testbed=Path(folder), checkout=checkout)
        finally:
            subprocess.run([TESTBED, "down", folder], check=True, stdout=subprocess.DEVNULL)


@pytest.fixture(scope="session")
def undisturbed(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of the same run without Slurm."""
    run_dir = tmp_path_factory.mktemp("without_slurm") / "run"
    train_without_slurm(tiny_dataset, run_dir)
    return run_dir


def require_slurm() -> None:
    """Install what is missing, or skip and say why that cannot be."""
    require(PACKAGES, COMMANDS)


def require(packages: tuple[str, ...], commands: tuple[str, ...]) -> None:
    """Install what is missing of these, or skip and say why that cannot be."""
    if sys.platform != "linux" or os.getuid() != 0:
        pytest.skip("pretend hosts need root on Linux")
    if all(shutil.which(command) for command in commands):
        return
    if shutil.which("apt-get") is None:
        pytest.skip(f"there is no apt-get to install what is missing: {packages}")
    # Tests run in several processes, and apt-get in one at a time.
    with Path(tempfile.gettempdir(), "slurm-install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not all(shutil.which(command) for command in commands):
            install(packages)


def install(packages: tuple[str, ...]) -> None:
    for arguments in (["update"], ["install", "--yes", "--no-install-recommends", *packages]):
        try:
            result = subprocess.run(
                ["apt-get", "-qq", *arguments],
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
                capture_output=True,
                text=True,
                timeout=INSTALL_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired as error:
            pytest.skip(f"{packages} cannot be installed: {error}")
        if result.returncode:
            pytest.skip(
                f"{packages} cannot be installed: {(result.stderr or result.stdout)[-500:]}"
            )
