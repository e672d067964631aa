"""Which tables captions come from is known by their paths, and why none came is said."""

from pathlib import Path

import polars as pl
import pytest
from test_caption_values import ROWS, built, corpus

from data_prep.__main__ import main


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    source = corpus(tmp_path / "in", "jsonl", [{"caption": "a", "n": i} for i in range(ROWS)])
    built(source, tmp_path / "out")
    return tmp_path / "out"


def recaption(dataset: Path, source: str, *more: str) -> int:
    asked = ["--source", source, "--key", "n", "--match", "n", "--workers", "1"]
    return main(["recaption", str(dataset), *asked, "--caption", "later={text}", *more])


def test_a_changed_table_is_another_one_whichever_folder_it_is_in(dataset, tmp_path, capsys):
    for i, name in enumerate("ab"):
        (tmp_path / "t" / name).mkdir(parents=True)
        rows = pl.DataFrame({"n": [2 * i, 2 * i + 1], "text": ["x", "y"]})
        rows.write_parquet(tmp_path / "t" / name / "x.parquet")
    assert recaption(dataset, str(tmp_path / "t")) == 0
    capsys.readouterr()
    assert recaption(dataset, str(tmp_path / "t/*/x.parquet")) == 0
    assert "is finished" in capsys.readouterr().out
    for name in "ab":
        file = tmp_path / "t" / name / "x.parquet"
        whole = file.read_bytes()
        pl.read_parquet(file).with_columns(text=pl.lit("z")).write_parquet(file)
        assert recaption(dataset, str(tmp_path / "t")) == 2
        assert "made with other tables" in capsys.readouterr().err
        file.write_bytes(whole)


@pytest.mark.parametrize("text", ["N/A", "<p>a</p>"])
def test_where_all_captions_say_nothing_the_line_names_the_option(dataset, tmp_path, text, capsys):
    rows = pl.DataFrame({"n": list(range(ROWS)), "text": [text] * ROWS})
    rows.write_parquet(tmp_path / "x.parquet")
    assert recaption(dataset, str(tmp_path / "x.parquet"), "--drop-placeholders", "true") == 2
    error = capsys.readouterr().err.strip()
    assert "4 rows are placeholders or markup" in error and "--drop-placeholders false" in error
    source = corpus(tmp_path / "in2", "jsonl", [{"caption": text}] * ROWS)
    asked = ["build", "--source", str(source), "--out", str(tmp_path / "none")]
    assert main([*asked, "--drop-placeholders", "true"]) == 2
    error = capsys.readouterr().err.strip()
    assert "4 rows are placeholders or markup" in error and "--drop-placeholders false" in error
