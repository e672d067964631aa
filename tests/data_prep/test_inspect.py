"""`stats` and `inspect` say of a dataset what is in it."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from data_prep_corpus import encoded, options, picture, write_corpus

from data_prep.__main__ import main
from data_prep.build.pipeline import build_dataset
from data_prep.inspection.contact_sheet import shrink_to_data_url
from data_prep.inspection.kept import kept_patches, kept_tokens
from data_prep.inspection.page import bins_of, spelt
from data_prep.stats import Tally
from pretrain.dataset.manifest import Manifest
from pretrain.dataset.reader import Dataset
from pretrain.tokens.text_reduction import reduce_tokens
from pretrain.tokens.tokenizer import open_tokenizer

ROOT = Path(__file__).resolve().parents[2]
ROWS = 90


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of many sizes, two captions of which every third sample has one, rejections."""
    folder = tmp_path_factory.mktemp("inspect")
    images = [encoded(picture(i, width=60 + i, height=72 + i % 7), "JPEG") for i in range(ROWS)]
    images[5], images[9] = b"no picture", encoded(picture(9, width=8, height=8))
    texts = [f"a red dog {'very ' * (i % 9)}number {i}" for i in range(ROWS)]
    images[19], texts[19] = images[20], texts[20]
    sentence = "A red dog jumps over the small house. The cat sleeps. It rains on the green hill!"
    source = write_corpus(
        folder / "corpus.parquet",
        {
            "image": images,
            "short": texts,
            "long": [None if i % 3 else f"{sentence} <b>{i}</b>" for i in range(ROWS)],
        },
    )
    build_dataset(
        options(
            *(source, folder / "out"),
            captions=("short={short}", "long={long}"),
            tiers="48:90,full:95",
            shard_samples=40,
        )
    )
    return folder / "out"


@pytest.fixture
def copied(built: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(built, tmp_path / "copy"))


def counted(dataset: Dataset, rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """(rows, captions) tokens and (rows, 2) width and height, as training's reader finds them."""
    sizes = []
    for row in rows:
        member = dataset.index[row]
        with (dataset.directory / f"48/{member['shard']:05d}.tar").open("rb") as shard:
            shard.seek(member["json"]["offset"])
            told = json.loads(shard.read(member["json"]["size"]))
        sizes.append((told["width"], told["height"]))
    return dataset.index["tokens"][rows].astype(int), np.asarray(sizes)


@pytest.mark.parametrize("samples", [None, 10])
def test_stats_are_what_a_count_of_the_rows_gives(built, tmp_path, capsys, samples):
    file = tmp_path / "stats.json"
    more = [] if samples is None else ["--samples", str(samples)]
    assert main(["stats", str(built), "--json", str(file), *more]) == 0
    told = json.loads(file.read_text())
    dataset = Dataset(built, "full")
    count = len(dataset)
    step = count / (samples or count)
    rows = [int((i + 0.5) * step) for i in range(samples or count)]
    tokens, sizes = counted(dataset, rows)
    assert told["samples"] == count == ROWS - 3 and told["looked_at"] == len(rows)
    for name, values in (
        *(("width_px", sizes[:, 0]), ("height_px", sizes[:, 1])),
        *(("shorter_px", sizes.min(1)), ("aspect", np.round(sizes[:, 0] / sizes[:, 1], 2))),
    ):
        middle = np.quantile(values, 0.5, method="inverted_cdf")
        wanted = {"min": values.min(), "median": middle, "max": values.max()}
        assert told["pictures"][name] == wanted, name
    for column, name in enumerate(dataset.manifest.captions):
        lengths = tokens[:, column][tokens[:, column] > 0]
        figures = told["captions"][name]
        assert figures["samples"] == len(lengths)
        assert figures["mean"] == pytest.approx(lengths.mean())
        for share, value in figures["percentiles"].items():
            wanted = np.quantile(lengths, int(share[:-1]) / 100, method="inverted_cdf")
            assert value == wanted, (name, share)
        for context, share in figures["cut_at"].items():
            assert share == pytest.approx((lengths + 1 > int(context)).mean()), (name, context)
    used = {int(token) for row in range(count) for token in dataset.read_ids(row)}
    assert told["vocabulary"]["used"] == len(used)
    assert told["vocabulary"]["ids"] == dataset.vocabulary.size
    assert told["rejected"] == dataset.manifest.rejected
    assert sum(told["rejected"].values()) == 3
    shards = [path.stat().st_size for path in (built / "48").glob("*.tar")]
    assert told["tiers"]["48"] == {
        "shortest_px": 48,
        "shrunk": 1.0,  # every picture is larger
        "shards": len(shards),
        "bytes": sum(shards),
    }
    assert told["tiers"]["full"]["shrunk"] is None
    shown = capsys.readouterr().out
    assert "duplicate_key" in shown and f"3 of {ROWS} rows" in shown and "cut at 77" in shown


def test_the_share_of_pictures_that_a_tier_shrinks_is_told(tmp_path, capsys):
    sides = (40, 48, 49, 50, 200, 300, 320, 400)
    images = [encoded(picture(i, width=side, height=side + 9)) for i, side in enumerate(sides)]
    texts = [f"picture {i}" for i in range(len(sides))]
    source = write_corpus(tmp_path / "corpus.parquet", {"image": images, "caption": texts})
    build_dataset(options(source, tmp_path / "out", tiers="48:90,320:90,500:90"))
    assert main(["stats", str(tmp_path / "out"), "--json", str(tmp_path / "stats.json")]) == 0
    tiers = json.loads((tmp_path / "stats.json").read_text())["tiers"]
    assert {name: tier["shrunk"] for name, tier in tiers.items()} == {
        "48": 6 / 8,
        "320": 1 / 8,
        "500": 0.0,
    }
    shown = capsys.readouterr().out
    assert "shortest side 48 px, shrunk to it: 75.0%" in shown
    assert "shortest side 500 px, shrunk to it: 0.0%" in shown


def test_damage_is_named_in_one_line(copied, capsys):
    manifest = Manifest.from_json((copied / "manifest.json").read_text())
    (shard, *_) = sorted((copied / manifest.text_tier).glob("*.tar"))
    content = bytearray(shard.read_bytes())
    place = content.index(b'"captions"')
    content[place] ^= 1
    shard.write_bytes(content)
    assert main(["stats", str(copied)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: sample ") and "crc_mismatch (member json at byte" in error
    assert f"of {shard}; copy the dataset" in error


def test_a_count_below_one_is_refused(built, capsys):
    assert main(["stats", str(built), "--samples", "0"]) == 2
    assert "--samples=0" in capsys.readouterr().err


class Page(HTMLParser):
    """What a browser would load, and the text of each kind of element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.tags: Counter[str] = Counter()
        self.tokens: list[tuple[str, str]] = []  # classes, text
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        told = dict(attrs)
        self.tags[tag] += 1
        self.loaded += [told[name] for name in ("src", "href") if name in told]
        if "token" in (told.get("class") or "").split():
            self.tokens.append((told["class"], ""))

    def handle_data(self, data):
        self.text += data
        if self.tokens and not self.tokens[-1][1]:
            self.tokens[-1] = (self.tokens[-1][0], data)


def test_the_page_shows_samples_and_counts_and_loads_nothing(built, tmp_path, capsys):
    pages = [tmp_path / "one.html", tmp_path / "other.html"]
    for page in pages:
        assert main(["inspect", str(built), "--out", str(page), "--samples", "7"]) == 0
    assert pages[0].read_bytes() == pages[1].read_bytes()
    page = Page(pages[0].read_text())
    # Charts refer to parts of their own drawing by "#…".
    assert all(where.startswith(("data:image/jpeg;base64,", "#")) for where in page.loaded)
    assert page.tags["img"] == 7 and page.tags["image"] == 5 and not page.tags["script"]
    words = " ".join(page.text.split())
    for reason in ("image_too_small", "image_unreadable", "duplicate_key"):
        assert reason in words
    assert "image_aspect" not in words  # none was rejected for it
    for title in ("Tokens per caption: short", "Tokens per caption: long", "Most frequent tokens"):
        assert title in words
    assert "a new sentence begins in the same caption" in words and "by textblob" in words
    assert "An automatic tagger (textblob) guesses the classes." in words
    assert "occurrences in all captions" in words and "2–3" in words
    dataset = Dataset(built, "full")
    pieces = open_tokenizer(built / "tokenizer.model").pieces()
    used = Counter(token for row in range(len(dataset)) for token in dataset.read_ids(row))
    ((most, _),) = used.most_common(1)
    assert spelt(pieces[most].strip() or "␣") in words
    assert [spelt(one) for one in (",", "cat", "␣")] == ["“,” comma", "“cat”", "space"]
    wanted = []
    for row in (int((i + 0.5) * len(dataset) / 7) for i in range(7)):
        sample = dataset.read(row)
        names = {1: "noun", 2: "adjective", 3: "verb", 4: "other"}
        wanted += [
            (names[int(kind) & 0x7F], pieces[token].strip() or "␣")
            for token, kind in zip(sample.ids.tolist(), sample.classes, strict=True)
        ]
    legend = 6  # four classes, what begins a sentence, and white space
    shown = [(classes.split()[1], text) for classes, text in page.tokens[legend:]]
    assert shown[: len(wanted)] == wanted
    # Three sentences: two further ones begin within each long caption.
    assert any("sentence" in classes for classes, _ in page.tokens)


def test_what_is_kept_is_what_training_keeps():
    rng = np.random.default_rng(7)
    ids = rng.permutation(500)[:30].astype(np.int64)
    classes = rng.integers(1, 5, 30)
    classes[[0, 11, 19]] |= 0x80
    counts = rng.integers(1, 1000, 500).astype(np.uint64)
    for name, places in kept_tokens(ids, classes, counts).items():
        draws = np.random.default_rng(0).random((1, 30))
        kept, (length,) = reduce_tokens(
            *(name, ids[None], classes[None], np.asarray([30]), 8, draws, counts)
        )
        assert ids[places].tolist() == kept[0, :length].tolist(), name
    for way in kept_patches():
        assert len(way.kept) + len(way.dropped) == way.grid**2
        assert len(way.kept) == (196 if way.name == "none" else 49)


def test_bins_hold_every_value_once():
    rng = np.random.default_rng(3)
    for values, step in (
        *((rng.integers(1, 9, 500), 1), (rng.geometric(0.01, 5000), 1), (np.full(9, 64), 1)),
        (np.round(rng.uniform(0.3, 4, 900), 2), 0.01),
    ):
        tally = Tally()
        tally.add(values)
        bins = bins_of(tally, "px", step)
        assert sum(one.count for one in bins) == len(values)
        for one in bins[:-1]:  # the last has the tail
            inside = (values > one.low) & (values < one.high)
            assert one.count == inside.sum(), (one, step)


def test_the_page_is_drawn_without_torch():
    code = "import sys, data_prep.inspection.page as p; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_picture_that_is_none_leaves_a_blank():
    assert shrink_to_data_url(b"\xff\xd8 no picture") is None
    broken = encoded(picture(1), "JPEG")
    assert shrink_to_data_url(broken) is not None and shrink_to_data_url(broken[:400]) is None
