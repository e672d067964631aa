"""Commands on datasets of a hub of the tests' own, and what they are to give."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from dataset_hub import DatasetHub

from pretrain.dataset.manifest import read_manifest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = [sys.executable, str(ROOT / "tests/support/hub_builds.py")]
FromDisk = Callable[..., tuple[dict[str, bytes], dict]]
COMMON = ["--tiers", "48:90", "--shard-samples", "8", "--vocab-size", "400", "--workers", "1"]


def environment_of(server: DatasetHub, home: Path) -> dict[str, str]:
    """No address but the server's is asked for."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    here = {"HF_ENDPOINT": server.address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    return {**inherited, **here, "PYTHONPATH": str(ROOT)}


def command(source: str, out: Path, server: DatasetHub, *more: str) -> dict:
    """A build as a user starts it, in a process of its own."""
    arguments = ["build", "--source", source, "--out", str(out), *COMMON, *more]
    return {
        "args": [sys.executable, "-m", "data_prep", *arguments],
        "cwd": ROOT,
        "env": environment_of(server, out.parent / "home"),
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }


def run(server: DatasetHub, *arguments: str, **environment: str) -> SimpleNamespace:
    """Any command in the process that is there."""
    print(json.dumps([arguments, environment]), file=server.builds.stdin, flush=True)
    status, said = json.loads(server.builds.stdout.readline())
    return SimpleNamespace(returncode=status, stderr=said)


def build(
    source: str, out: Path, server: DatasetHub, *more: str, cache: str = "cache", **environment: str
) -> SimpleNamespace:
    kept = ["--cache", str(out.parent / cache)]
    arguments = ["build", "--source", source, "--out", str(out), *kept, *COMMON, *more]
    return run(server, *arguments, **environment)


def shards(out: Path) -> dict[str, bytes]:
    """All but the manifest, which says where the corpus lay."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }


def assert_as_from_disk(out: Path, from_disk: FromDisk, names: str, *more: str) -> dict:
    """The same bytes as a build of the same files on disk; returns the manifest's `hub`."""
    wanted, other = from_disk(names, *more)
    assert shards(out) == wanted and len(wanted) > 5
    found = read_manifest(out).provenance
    origin = found.pop("hub")
    assert found == other
    return origin
