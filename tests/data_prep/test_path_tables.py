"""Tables of paths and captions: read below their folder, never outside; links are refused."""

import csv
import json
from pathlib import Path

import pytest
from data_prep_corpus import caption, encoded, picture

from data_prep.__main__ import main
from data_prep.sources import Corpus, SourceOptions
from pretrain.dataset.manifest import read_manifest

ROWS = [{"file_name": f"pics/{i}.png", "text": caption(i) + ', "so"\n', "n": i} for i in range(6)]


def fill(folder: Path) -> Path:
    (folder / "pics").mkdir(parents=True)
    for i in range(6):
        (folder / f"pics/{i}.png").write_bytes(encoded(picture(i)))
    return folder


def write_table(path: Path) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        return path
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(ROWS[0]), delimiter="\t" if ".tsv" in path.name else ",")
        writer.writeheader()
        writer.writerows(ROWS)
    return path


def build(source: Path, out: Path, *more: str) -> int:
    return main(["build", "--source", str(source), "--out", str(out), *more])


@pytest.mark.parametrize("name", ["list.csv", "list.tsv", "list.jsonl", "metadata.csv"])
def test_every_kind_of_table_gives_its_rows(tmp_path, name):
    table = write_table(fill(tmp_path / "mine") / name)
    source = table.parent if name == "metadata.csv" else table  # an imagefolder
    corpus = Corpus(SourceOptions(source=str(source), where="n >= 4"))
    found = list(corpus.records(corpus.columns, with_images=True))
    assert [record.columns for record in found] == ROWS[4:]
    assert [record.image for record in found] == [encoded(picture(i)) for i in (4, 5)]
    assert build(source, tmp_path / "out") == 0
    assert read_manifest(tmp_path / "out").samples == 6


REFUSED = {
    "links": ("url,caption\nhttp://h/a.jpg,a\n", ["table of links", "data_prep download"]),
    "links without names": ("http://h/a.jpg,a\nhttp://h/b.jpg,b\n", ["table of links"]),
    "ragged": ("path,text\npics/0.png,a\npics/1.png,b,c\n", ["line 3 has 3 cells", "mend"]),
    "open quote": ('path,text\npics/0.png,"a\npics/1.png,b\n', ["line 3", "quote"]),
    "nothing there": ("path,text\nno/0.png,a\n", ["'no/0.png'", "--image-root"]),
    "unknown names": ("a,b\npics/0.png,x\n", ["['a', 'b']", "--image-column"]),
    "no rows": ("path,text\n", ["no rows", "--source"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused_in_one_line(name, tmp_path, capsys):
    text, parts = REFUSED[name]
    table = fill(tmp_path / "mine") / "list.csv"
    table.write_text(text)
    assert build(table, tmp_path / "out") == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "\n" not in error, error
    for part in parts:
        assert part in error, error
    assert not (tmp_path / "out").exists()
