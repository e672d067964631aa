"""Captions that came later are what they would be inside the shards, and a run is bound to them."""

import json
import re
import shutil
import signal
from pathlib import Path
from typing import get_args

import numpy as np
import polars as pl
import pytest
from forked_runs import train
from killed_builds import content, forked_build
from tiny_datasets import CORPUS

from data_prep.__main__ import main as data_prep
from data_prep.recaption import join as recaption_join
from pretrain.batches.collate import Collator
from pretrain.batches.options import CropOptions
from pretrain.dataset.captions import open_recaptions
from pretrain.dataset.reader import Dataset
from pretrain.tokens.options import TokenOptions
from pretrain.tokens.text_reduction import TextReduction

BOTH = ["label={caption}", "phrase=a drawing of {caption}"]
WEIGHTS = {"label": 1.0, "phrase": 0.5, "later": 2.5}


def build(corpus: Path, out: Path, captions: list[str], *more: str) -> Path:
    named = [word for caption in captions for word in ("--caption", caption)]
    options = ["--tiers", "full:95", "--shard-samples", "50", "--workers", "1", *named, *more]
    assert data_prep(["build", "--source", str(corpus), "--out", str(out), *options]) == 0
    return out


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """inside: a dataset with the caption `later` in its shards; beside: one without; later.parquet:
    that caption by the samples' keys, in another order, with strange rows among them."""
    folder = tmp_path_factory.mktemp("recaptions")
    food = (pl.col("group") == "food & drink") & pl.col("artist").is_in(["noto", "fluent3d"])
    corpus = pl.read_parquet(CORPUS).filter(food).with_row_index("number")
    text = pl.format("Look, a tasty {}! It is number {}. {}", "caption", "number", "keywords")
    corpus = corpus.with_columns(later=pl.when(pl.col("number") % 3 > 0).then(text))
    corpus.write_parquet(folder / "corpus.parquet")
    vocabulary = ("--vocab-size", "400", "--byte-fallback", "false")
    build(folder / "corpus.parquet", folder / "inside", [*BOTH, "later={later}"], *vocabulary)
    given = ("--tokenizer", str(folder / "inside/tokenizer.model"))
    build(folder / "corpus.parquet", folder / "beside", BOTH, *given)
    data = Dataset(folder / "inside", "full")
    records = [(data.key(row), data.read_json(row)["captions"]) for row in range(len(data))]
    rows = [(key, captions["later"]) for key, captions in records if "later" in captions]
    rows += [("0123456789abcdef", "of no sample"), (None, "without a key")]
    rows += [(key, "  ") for key, captions in records if "later" not in captions][:2]
    table = pl.DataFrame(rows, schema=["key", "text"], orient="row").sample(
        fraction=1, shuffle=True, seed=1
    )
    table.write_parquet(folder / "later.parquet")
    assert recaption(folder / "beside", folder / "later.parquet") == 0
    return folder


def recaption(dataset: Path, table: Path, *more: str, caption: str = "later={text}") -> int:
    options = ["--source", str(table), "--key", "key", "--caption", caption, "--workers", "1"]
    return data_prep(["recaption", str(dataset), *options, *more])


def collator(dataset: Path, weights: dict[str, float], reduction: TextReduction) -> Collator:
    data = Dataset(dataset, "full")
    return Collator(
        dataset=data,
        tokens=TokenOptions(image_px=16, text_tokens=8, text_reduction=reduction),
        patch_px=8,
        specials="bos",
        crop=CropOptions(),
        caption_weights=weights,
        recaptions=open_recaptions(dataset, data.manifest, weights),
        seed=3,
    )


@pytest.fixture
def beside(made: Path, tmp_path: Path) -> Path:
    """The dataset with its recaption once more, to be damaged."""
    return Path(shutil.copytree(made / "beside", tmp_path / "beside"))


@pytest.mark.parametrize("reduction", get_args(TextReduction))
def test_batches_are_bitwise_those_of_a_dataset_with_the_caption_in_its_shards(made, reduction):
    inside = collator(made / "inside", WEIGHTS, reduction)
    beside = collator(made / "beside", WEIGHTS, reduction)
    rows = np.arange(len(inside.dataset))
    for start in (0, 10_000):
        one, other = inside(start + rows, rows), beside(start + rows, rows)
        assert one.keys() == other.keys()
        for name in one:
            assert np.array_equal(one[name], other[name]), name


def test_what_is_drawn_follows_the_weights_and_samples_without_the_caption_take_another(made):
    draws = 4000
    one = collator(made / "beside", {"label": 1, "later": 3}, "truncate")
    texts = one.dataset.tokenizer()
    for row in range(3):
        told = one.dataset.read_json(row)
        wanted = {name: texts.encode(text)[:7] for name, text in told["captions"].items()}
        ids = one.text(
            np.arange(draws), np.full(draws, row), [one.dataset.read(row)] * draws
        )  # (draws, T): bos first
        is_label = (ids[:, 1 : 1 + len(wanted["label"])] == wanted["label"]).all(1)
        lacks = told["meta"]["number"] % 3 == 0
        share = 1.0 if lacks else 0.25
        gap = abs(is_label.mean() - share)
        assert gap <= 5 * (share * (1 - share) / draws) ** 0.5, (row, gap)


def test_what_matched_is_counted_and_a_dataset_is_not_touched(made):
    told = json.loads((made / "beside/captions/later/recaption.json").read_text())
    samples = len(Dataset(made / "beside", "full"))
    having = sum(told["files"][name]["bytes"] > 0 for name in ("ids.bin", "pos.bin"))
    tokens = Dataset(made / "inside", "full").index["tokens"][:, 2]
    assert having == 2 and told["files"]["pos.bin"]["bytes"] == tokens.sum()
    assert told["samples_matched"] == told["rows_matched"] == np.count_nonzero(tokens)
    assert told["samples_unmatched"] == samples - told["samples_matched"]
    assert told["rows_unmatched"] == 1
    assert told["rejected"] == {"key_missing": 1, "caption_empty": 2}
    again = build(
        made / "corpus.parquet",
        made / "again",
        BOTH,
        *("--tokenizer", str(made / "inside/tokenizer.model")),
    )
    files = content(made / "beside")
    assert content(again) == {n: b for n, b in files.items() if not n.startswith("captions/")}
    assert sorted(n for n in files if n not in content(again)) == [
        f"captions/later/{name}"
        for name in ("ids.bin", "index.npy", "pos.bin", "recaption.json", "token_counts.npy")
    ]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_parts_of_the_join_and_the_workers_decide_nothing(made, beside, monkeypatch, workers):
    monkeypatch.setattr(recaption_join, "BUCKET_ROWS", 20)
    assert recaption_join.bucket_count(0, len(Dataset(beside, "full"))) > 5
    shutil.rmtree(beside / "captions")
    assert recaption(beside, made / "later.parquet", "--workers", workers) == 0
    assert content(beside) == content(made / "beside")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_metadata_column_joins_too_and_lists_give_several_captions(made, tmp_path, kind):
    shutil.copytree(made / "inside", tmp_path / "data")
    told = [Dataset(tmp_path / "data", "full").read_json(row) for row in range(30)]
    rows = [(one["meta"]["number"], one["captions"]["label"]) for one in told]
    table = pl.DataFrame(rows, schema=["key", "text"], orient="row")
    if kind == "csv":
        table.write_csv(tmp_path / "table.csv")
    else:
        lists = pl.concat_list(pl.col("text"), pl.lit(" "), pl.format("a {}", "text"))
        table = table.with_columns(text=lists)
        write = {"jsonl": table.write_ndjson, "parquet": table.write_parquet}[kind]
        write(tmp_path / f"table.{kind}")
    assert recaption(
        *(tmp_path / "data", tmp_path / f"table.{kind}", "--match", "number"),
        *("--captions-per-list", "2"),
        caption="more={text}",
    ) == 0  # fmt: skip
    names = ["more"] if kind == "csv" else ["more", "more_2"]
    data = Dataset(tmp_path / "data", "full")
    opened = open_recaptions(tmp_path / "data", data.manifest, names)
    texts = data.tokenizer()
    for row, one in enumerate(told):
        label = one["captions"]["label"]
        for recaption_, text in zip(opened, (label, f"a {label}"), strict=False):
            ids, _ = recaption_.read(row) or (None, None)
            assert ids is not None and ids.tolist() == texts.encode(text)
    assert np.count_nonzero(opened[0].index["tokens"]) == 30
    assert sorted(p.name for p in (tmp_path / "data/captions").iterdir()) == names


@pytest.mark.parametrize(
    ("rows", "more", "named"),
    [
        ([("0" * 16, "a")] * 3, (), "2 rows .* e.g. .0{16}. at .* row 0 and at .* row 1"),
        ([("0" * 16, "a")], (), "no caption came of 1 rows.*1 have a --key key that no sample"),
        ([("nothing", "a")], (), "--key key at .* row 0 holds 'nothing', no sample's key"),
        ([(0.5, "a")], (), "--key key at .*'0.5' of type float"),
        ([(1, "a")], ("--match", "nothing"), "--match nothing: .* no such metadata"),
        ([(1, "a")], ("--key", "nothing"), r"--key nothing: .* \['key', 'text'\]"),
        ([(1, "a")], ("--caption", "label={text}"), "has captions .'label', 'phrase'. already"),
        ([(1, "a")], ("--caption", "later={text}"), "captions/later is there already"),
        ([(1, "a")], ("--caption", "b={nothing}"), "change --caption"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line_and_leaves_nothing(
    beside, tmp_path, capfd, rows, more, named
):
    pl.DataFrame(rows, schema=["key", "text"], orient="row").write_parquet(tmp_path / "t.parquet")
    before = content(beside)
    assert recaption(beside, tmp_path / "t.parquet", *more, caption="other={text}") == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error")]
    assert len(errors) == 1 and re.search(named, errors[0]), errors
    assert content(beside) == before


@pytest.mark.soak
def test_a_kill_leaves_no_half_folder_and_the_command_given_again_makes_the_same(made, tmp_path):
    def forked(name: str, kill_at: int | None) -> tuple[int, int]:
        shutil.copytree(made / "beside", tmp_path / name)
        return forked_build(command, tmp_path / name, kill_at)

    source = ["--source", str(made / "later.parquet"), "--key", "key", "--workers", "1"]
    command = ["recaption", "OUT", *source, "--caption", "new={text}"]
    status, calls = forked("whole", None)
    wanted = content(tmp_path / "whole")
    assert status == 0 and calls > 20
    new = {name for name in wanted if name.startswith("captions/new/")}
    assert len(new) == 5
    for moment in range(0, calls, max(calls // 12, 1)):
        assert forked(f"at{moment}", moment)[0] == signal.SIGKILL
        left = content(tmp_path / f"at{moment}")
        assert not new & left.keys() or new <= left.keys(), moment
        if not new & left.keys():
            assert forked_build(command, tmp_path / f"at{moment}", None)[0] == 0
            assert content(tmp_path / f"at{moment}") == wanted, moment


def test_killed_between_two_captions_the_same_command_makes_the_other(made, tmp_path, capfd):
    source = ["--source", str(made / "later.parquet"), "--key", "key", "--workers", "1"]
    captions = ["--caption", "one={text}", "--caption", "two=a {text}"]

    def command(dataset: Path, *more: str) -> list[str]:
        return ["recaption", str(dataset), *source, *captions, *more]

    for name in ("whole", "cut"):
        shutil.copytree(made / "beside", tmp_path / name)
    assert data_prep(command(tmp_path / "whole")) == 0
    wanted = content(tmp_path / "whole")
    for gone in ("one", "two"):
        shutil.rmtree(tmp_path / "cut")
        shutil.copytree(tmp_path / "whole", tmp_path / "cut")
        shutil.rmtree(tmp_path / "cut/captions" / gone)
        assert data_prep(command(tmp_path / "cut")) == 0
        assert content(tmp_path / "cut") == wanted, gone
    capfd.readouterr()
    assert data_prep(command(tmp_path / "cut")) == 0
    told = capfd.readouterr().out
    assert "caption one is finished" in told and "caption two is finished" in told
    assert content(tmp_path / "cut") == wanted
    for more, named in (
        (["--caption-max-chars", "7"], "limits"),
        (["--caption", "one=the {text}"], "template"),
    ):
        request = command(tmp_path / "cut", *more)
        if "template" in named:
            request = [word for word in request if word not in ("one={text}", "--caption")]
            request = ["recaption", str(tmp_path / "cut"), *source, *more]
        assert data_prep(request) == 2
        assert f"made with other {named}" in capfd.readouterr().err
    assert content(tmp_path / "cut") == wanted


def test_stale_and_damaged_folders_are_refused_and_verify_names_them(beside, capfd):
    folder = beside / "captions/later"
    data = Dataset(beside, "full")
    assert data_prep(["verify", str(beside), "--workers", "1"]) == 0
    for name in ("ids.bin", "pos.bin", "index.npy", "token_counts.npy"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert data_prep(["verify", str(beside), "--workers", "1"]) == 1, name
        assert name in capfd.readouterr().out
        (folder / name).write_bytes(whole)
    whole = (folder / "recaption.json").read_text()
    for key in ("dataset_fingerprint", "tokenizer_sha256"):
        told = json.loads(whole)
        told[key] = "f" * 64
        (folder / "recaption.json").write_text(json.dumps(told))
        with pytest.raises(ValueError, match=r"another version of .* remove it and make"):
            open_recaptions(beside, data.manifest, ["later"])
        assert data_prep(["stats", str(beside)]) == 0
        assert "recaption later" in (shown := capfd.readouterr().out) and "refused" in shown
    (folder / "recaption.json").write_text(whole)
    assert data_prep(["stats", str(beside)]) == 0
    assert "1 rows of later.parquet match none" in capfd.readouterr().out
    with pytest.raises(ValueError, match=r"data\.caption_weights names \['sooner'\].*\['later'\]"):
        open_recaptions(beside, data.manifest, ["label", "sooner"])


def test_a_damaged_text_is_counted_and_the_sample_takes_another_of_its_captions(beside):
    one = collator(beside, {"later": 1}, "truncate")
    rows = np.flatnonzero(one.recaptions[0].index["tokens"])[:4]
    whole = one(np.arange(4), rows)
    with (beside / "captions/later/ids.bin").open("r+b") as file:
        file.seek(int(one.recaptions[0].index["offset"][rows[2]]) * 2)
        file.write(b"\xff\xff")
    batch = one(np.arange(4), rows)
    assert batch["replaced"] == {"recaption_damaged": 1}
    assert (batch["rows"] == rows).all()
    assert (batch["text_ids"] == whole["text_ids"]).all(1).tolist() == [True, True, False, True]
    label = one.dataset.read_ids(int(rows[2]))
    assert batch["text_ids"][2, 1] in label


@pytest.mark.soak
def test_a_run_trains_by_a_recaption_and_others_are_refused_at_a_resume(beside, made, tmp_path):
    options = ("--data.caption_weights", "{label: 1, later: 2}", "--checkpoint.keep", "9")
    ended = train(tmp_path / "run", beside, *options)
    assert ended.code == 0, ended.output
    # The same run on a dataset that has the caption in its shards has the same losses.
    inside = train(tmp_path / "inside", made / "inside", *options)
    assert inside.code == 0, inside.output
    losses = [
        [one["loss"] for one in map(json.loads, (tmp_path / run / "metrics.jsonl").open())
         if "loss" in one]
        for run in ("run", "inside")
    ]  # fmt: skip
    assert losses[0] and losses[0] == losses[1]
    shutil.rmtree(sorted((tmp_path / "run/checkpoints").glob("step-*"))[-1])
    shutil.move(beside / "captions/later", tmp_path / "later")
    table = pl.read_parquet(made / "later.parquet").with_columns(pl.col("text").str.to_uppercase())
    table.write_parquet(tmp_path / "upper.parquet")
    assert recaption(beside, tmp_path / "upper.parquet") == 0
    again = train(tmp_path / "run", beside, *options)
    assert again.code == 2 and "was trained with other recaptions" in again.output, again.output
    shutil.rmtree(beside / "captions/later")
    again = train(tmp_path / "run", beside, *options)
    assert again.code == 2 and "names ['later']" in again.output, again.output
    shutil.move(tmp_path / "later", beside / "captions/later")
    again = train(tmp_path / "run", beside, *options)
    assert again.code == 0, again.output
