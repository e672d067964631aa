"""The same work on a Ray cluster of two nodes, one of which is lost and one added in the middle."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from data_prep_corpus import plain_corpus

from data_prep.__main__ import main
from data_prep.pool import PoolOptions, Report, run_in_pool

ray = pytest.importorskip("ray", reason="needs requirements-ray.txt")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without a CPU and one node of one, each a raylet of its own."""
    from ray.cluster_utils import Cluster

    node = {"object_store_memory": 80 << 20, "include_dashboard": False}
    found = Cluster(initialize_head=True, head_node_args={**node, "num_cpus": 0})
    found.first = found.add_node(num_cpus=1, object_store_memory=80 << 20)
    yield found
    ray.shutdown()
    found.shutdown()


def slowly(folder: str, item: int, report: Report) -> int:
    """A task that writes down where it runs."""
    if item < 0:
        raise ValueError("no such item")
    time.sleep(0.15)
    node = ray.get_runtime_context().get_node_id()
    with (Path(folder) / node).open("a") as log:
        log.write(f"{item}\n")
    report(1)
    return item * item


def test_a_node_is_lost_one_is_added_and_nothing_of_it_shows(cluster: Any, tmp_path: Path) -> None:
    options = PoolOptions(engine="ray", ray_address=cluster.address)
    told: list[int] = []
    found: list[int] = []
    for value in run_in_pool(slowly, str(tmp_path), range(30), options, told.append):
        found.append(value)
        if len(found) == 6:
            cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
        if len(found) == 14:
            cluster.remove_node(cluster.first, allow_graceful=False)
    assert sorted(found) == [item * item for item in range(30)]
    logs = [log.read_text().split() for log in tmp_path.iterdir()]
    assert len(logs) == 2 and all(logs), "both nodes have worked"
    assert told, "what a lost node had reported last may be gone, not all"


def test_its_own_exception_ends_the_work(cluster: Any, tmp_path: Path) -> None:
    options = PoolOptions(engine="ray", ray_address=cluster.address)
    with pytest.raises(ValueError, match="no such item"):
        list(run_in_pool(slowly, str(tmp_path), [1, -1, 2], options, lambda _: None))


@pytest.mark.soak
def test_a_build_there_gives_the_bytes_of_one_here(cluster: Any, tmp_path: Path) -> None:
    corpus = plain_corpus(tmp_path / "corpus.parquet", 40)
    common = ["build", "--source", str(corpus), "--tiers", "48:90", "--shard-samples", "8"]
    common += ["--vocab-size", "300"]
    assert main([*common, "--out", str(tmp_path / "here"), "--workers", "1"]) == 0
    progress = tmp_path / "progress.json"
    there = ["--engine", "ray", "--ray-address", cluster.address, "--progress-file", str(progress)]
    assert main([*common, "--out", str(tmp_path / "there"), *there]) == 0

    def files(folder: Path) -> dict[str, bytes]:
        found = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}

    assert files(tmp_path / "there") == files(tmp_path / "here")
    told = json.loads(progress.read_text())
    assert told["ended"] and told["done"] == told["total"] > 0, told
