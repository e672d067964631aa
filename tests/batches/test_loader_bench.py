"""The loader's bench times what training does, and says what to change."""

import re
from pathlib import Path

import pytest
from data_prep_corpus import options, plain_corpus

from benchmarks import loader as bench
from data_prep.build.pipeline import build_dataset


@pytest.fixture(scope="module")
def two_tiers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    source = plain_corpus(folder / "corpus.parquet", 64)
    build_dataset(options(source, folder / "out", tiers="48:90,full:90"))
    return folder / "out"


def test_every_step_is_timed_and_the_picture_drawn(two_tiers, tmp_path, capsys):
    words = [str(two_tiers), "--image-px", "32", "--patch-px", "8", "--samples", "64"]
    words += ["--batch", "32", "--gpu-images-per-s", "1e9", "--picture", str(tmp_path / "b.svg")]
    assert bench.main(words) == 0
    said = capsys.readouterr().out
    shares = {step: int(found) for step, found in re.findall(r"^(\w+) +[\d.]+ +(\d+)%", said, re.M)}
    assert list(shares) == list(bench.STEPS) and 97 <= sum(shares.values()) <= 103
    assert re.search(r"1,000,000,000 images/s need [\d,.]+ such cores; this machine has \d+", said)
    assert "1 threads" in said and "% of the time is spent on: " in said
    assert "</svg>" in (tmp_path / "b.svg").read_text()


def test_the_whole_is_what_its_steps_are(two_tiers):
    """Within what a busy machine allows: the loader on one thread is no faster than its steps."""
    measured = bench.measure(
        two_tiers, tier="48", image_px=32, patch_px=8, samples=64, batch=32, threads=(1,)
    )
    assert 0.2 < measured.images_per_s[1] / measured.core_images_per_s < 2


@pytest.mark.parametrize(
    ("image_px", "tier", "wanted"),
    [
        ("64", "48", "tier 48 has 48 px, asked for are 64: pictures are enlarged"),
        ("32", "full", "--tier 48 has pictures enough for 32 px, smaller"),
        ("16", "48", "no tier is near 16 px: `data_prep build --tiers 16,"),
    ],
)
def test_it_says_which_tier_would_serve(two_tiers, capsys, image_px, tier, wanted):
    words = [str(two_tiers), "--image-px", image_px, "--tier", tier, "--patch-px", "8"]
    assert bench.main([*words, "--samples", "32", "--batch", "32"]) == 0
    assert wanted in capsys.readouterr().out


def test_what_is_no_dataset_is_one_line(tmp_path, two_tiers, capsys):
    assert bench.main([str(tmp_path), "--image-px", "32"]) == 2
    assert bench.main([str(two_tiers), "--image-px", "32", "--tier", "160"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "--tier='160' asked for" in said[1]
