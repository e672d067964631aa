"""What a first build is told: a table beside the pictures, and too many rows left out."""

import json
from pathlib import Path

import pytest
from data_prep_corpus import caption, encoded, picture

from data_prep.__main__ import main as data_prep


def build(source: Path, out: Path, *more: str) -> int:
    return data_prep(["build", "--source", str(source), "--out", str(out), "--tiers", "full:95",
                      "--vocab-size", "300", "--workers", "1", *more])  # fmt: skip


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl"])
def test_a_table_beside_pictures_without_texts_is_named(ending, tmp_path, capsys):
    folder = tmp_path / "pictures"
    (folder / "a").mkdir(parents=True)
    rows = [(f"a/{i}.png", caption(i)) for i in range(8)]
    for i, (name, _) in enumerate(rows):
        (folder / name).write_bytes(encoded(picture(i)))
    table = folder / f"captions{ending}"
    if ending == ".jsonl":
        lines = [json.dumps({"path": name, "caption": text}) for name, text in rows]
    else:
        comma = {".csv": ",", ".tsv": "\t"}[ending]
        lines = [comma.join(row) for row in [("path", "caption"), *rows]]
    table.write_text("\n".join(lines) + "\n")
    assert build(folder, tmp_path / "out") == 2
    told = capsys.readouterr().err
    [error] = [line for line in told.splitlines() if line.startswith("error: ")]
    assert error.endswith(f"captions{ending} lies in it: --source {table}"), told
    assert build(table, tmp_path / "out") == 0  # and that is right
    told = capsys.readouterr().out
    assert "samples                 8" in told and "warning" not in told


def test_a_large_rejected_share_is_a_warning_with_its_option(tmp_path, capsys):
    def last_line(small: int) -> str:
        folder = tmp_path / str(small)
        folder.mkdir()
        for i in range(20):
            side = 12 if i < small else 64
            (folder / f"{i}.png").write_bytes(encoded(picture(i, width=side, height=side)))
            (folder / f"{i}.txt").write_text(caption(i))
        assert build(folder, tmp_path / f"out{small}") == 0
        return capsys.readouterr().out.strip().splitlines()[-1]

    assert last_line(7) == (
        "warning: 35% of the rows are rejected, 7 as image_too_small: look at --min-image-px"
    )
    assert not last_line(4).startswith("warning")  # 20 %


@pytest.mark.parametrize("out", ["pictures", "link"])
def test_a_dataset_in_its_own_source_is_refused(out, tmp_path, capsys):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "link").symlink_to("pictures")
    (tmp_path / "pictures/0.png").write_bytes(encoded(picture(0)))
    (tmp_path / "pictures/0.txt").write_text(caption(0))
    assert build(tmp_path / "pictures", tmp_path / out) == 2
    assert "choose an --out beside it" in capsys.readouterr().err
    assert len(list((tmp_path / "pictures").iterdir())) == 2  # nothing was written
    assert build(tmp_path / "pictures", tmp_path / "pictures_set") == 0
