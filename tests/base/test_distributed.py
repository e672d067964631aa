"""Ranks that cannot meet say so on one line."""

import os
import socket
import subprocess
import sys

import pytest
from tiny_runs import ROOT

START = "from pretrain.base import distributed; distributed.start(timeout_s=5)"


def start(**environment: str) -> str:
    """The last line of an attempt."""
    launchers = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # accelerate sets some, too
    plain = {k: v for k, v in os.environ.items() if k not in launchers}
    done = subprocess.run(
        [sys.executable, "-c", START],
        cwd=ROOT,
        env={**plain, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    return done.stderr.strip().splitlines()[-1]


def test_a_rank_without_its_launchers_variables_is_named():
    said = start(RANK="0")
    assert said.startswith("ValueError: RANK=0 is set, WORLD_SIZE, MASTER_ADDR, MASTER_PORT are")


@pytest.mark.parametrize("rank", ["0"])
def test_a_port_that_another_has_is_named(rank):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
        said = start(RANK=rank, **place)
    assert said.startswith("OSError: the ranks do not find each other at MASTER_"), said
    assert f"MASTER_PORT={port}" in said and "--master_port" in said


def test_a_process_of_its_own_leaves_the_environment_as_it_was():
    code = (
        "import os; from pretrain.base import distributed; before = dict(os.environ); "
        "distributed.start(); assert 'RANK' in os.environ; distributed.stop(); "
        "changed = {n for n in ('RANK', 'WORLD_SIZE', 'MASTER_PORT', 'LOCAL_RANK') "
        "if os.environ.get(n) != before.get(n)}; assert not changed, changed"
    )
    launchers = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    plain = {k: v for k, v in os.environ.items() if k not in launchers}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=plain, check=True)
