"""`data_prep plan`: what a build takes, against what the same build then took."""

from pathlib import Path

import pytest
from data_prep_corpus import caption, encoded, picture, write_corpus

from data_prep.__main__ import main as data_prep
from data_prep.build import pipeline
from pretrain.dataset.manifest import read_manifest

ROWS = 400
OPTIONS = ["--tiers", "32:90,full:95", "--vocab-size", "300", "--workers", "1"]
OPTIONS += ["--shard-samples", "50"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Pictures of one kind, of which every eighth is too small, and half pass `split`."""
    sides = [12 if i % 8 == 0 else 72 for i in range(ROWS)]
    columns = {
        "image": [encoded(picture(i, width=96, height=side)) for i, side in enumerate(sides)],
        "caption": [caption(i) for i in range(ROWS)],
        "split": ["train" if i // 3 % 2 else "test" for i in range(ROWS)],
    }
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.parquet", columns)


def told(name: str, text: str) -> str:
    """The line of the estimate that begins so."""
    return next(line for line in text.splitlines() if line.startswith(name))


def figure(text: str, behind: str) -> float:
    """The number after a word, in bytes where a unit follows."""
    value, unit = text.split(f"{behind} ", 1)[1].split()[:2]
    scale = {"kB": 1e3, "MB": 1e6, "GB": 1e9}.get(unit.strip(";,."), 1)
    return float(value.strip(";,").replace(",", "")) * scale


@pytest.mark.parametrize("where", [None, "split = 'train'"])
def test_an_estimate_is_what_the_build_then_takes(where, corpus, tmp_path, capsys):
    words = ["--source", str(corpus), "--out", str(tmp_path / "out"), *OPTIONS]
    words += ["--where", where] if where else []
    assert data_prep(["plan", *words, "--sample-rows", "96"]) == 0
    text = capsys.readouterr().out
    assert not (tmp_path / "out").exists(), "nothing is made"
    assert data_prep(["build", *words]) == 0
    assert "estimate" not in capsys.readouterr().err, "a small build does not say it"
    manifest = read_manifest(tmp_path / "out")
    rows = manifest.samples + sum(manifest.rejected.values())
    apart = {"samples": figure(told("samples", text), "about") / manifest.samples - 1}
    for name, tier in manifest.tiers.items():
        index = (tmp_path / "out" / name / "index.npy").stat().st_size
        apart[name] = figure(told("written", text), name) / (tier.bytes + index) - 1
    rejected = float(told("samples", text).split("%")[0].rpartition(" ")[2]) / 100
    apart["rejected"] = rejected - (rows - manifest.samples) / rows
    assert max(map(abs, apart.values())) < 0.1, (apart, text)
    assert "image_too_small" in told("samples", text)
    assert "8 tasks" in told("time", text) or where, text


def test_a_large_build_says_it_before_it_begins_and_not_again(
    corpus, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(pipeline, "_MANY_ROWS", ROWS)
    words = ["build", "--source", str(corpus), "--out", str(tmp_path / "out"), *OPTIONS]
    for share, lines in ((0, 5), (1, 0), (0, 0)):
        assert data_prep([*words, "--task-index", str(share), "--task-count", "2"]) == 0
        said = capsys.readouterr().err
        begins = ("estimate ", "samples ", "written ", "time ", "memory ")
        assert sum(line.startswith(begins) for line in said.splitlines()) == lines, said


def test_a_test_that_no_looked_at_row_passes_is_named(corpus, tmp_path, capsys):
    words = ["--source", str(corpus), "--out", str(tmp_path / "out"), *OPTIONS]
    assert data_prep(["plan", *words, "--where", "split = 'none'"]) == 2
    assert "--where" in capsys.readouterr().err.strip().splitlines()[-1]
