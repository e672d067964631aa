"""Tables of paths and captions: read below their folder, never outside; links are refused."""

import csv
import gzip
import json
import shutil
from pathlib import Path

import pytest
from data_prep_corpus import caption, encoded, picture, write_corpus

from data_prep.__main__ import main
from data_prep.download.link_tables import stage_tables
from data_prep.sources import Corpus, SourceOptions
from data_prep.sources.find import find_files
from data_prep.sources.path_tables import LINE_CHARS_CAP
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
    "ragged": ("path,text\npics/0.png,a\npics/1.png,b,c\n", ["line 3 has 3 cells", "fix"]),
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


def test_a_cell_of_any_text_is_read_and_one_beyond_the_bound_is_named(tmp_path, capsys):
    """Longer than the csv module allows: a caption that is too long, no fault elsewhere."""
    fill(tmp_path)
    long = "x " * 100_000
    rows = [("pics/0.png", long, "a"), ("pics/1.png", "a", long), ("pics/2.png", "b", "c")]
    for kind, comma in (("csv", ","), ("tsv", "\t")):
        table = tmp_path / f"list.{kind}"
        lines = [comma.join(row) for row in [("file_name", "text", "more"), *rows]]
        table.write_text("\n".join(lines))
        assert build(table, tmp_path / kind) == 0
        manifest = read_manifest(tmp_path / kind)
        assert manifest.samples == 2 and manifest.rejected["caption_too_long"] == 1
    later = ["recaption", str(tmp_path / "csv"), "--source", str(table), "--key", "file_name"]
    later += ["--match", "file_name", "--caption", "later={text}", "--workers", "1"]
    assert main(later) == 0
    assert "2 match no sample" not in capsys.readouterr().out
    (tmp_path / "links.csv").write_text(f"url,text,more\nhttp://h/1,a,{long}\n")
    assert stage_tables(str(tmp_path / "links.csv"), None, tmp_path / "staged")[1] == 1
    table.write_text("file_name\ttext\npics/0.png\t" + "x" * (LINE_CHARS_CAP + 1))
    assert build(table, tmp_path / "out") == 2
    error = capsys.readouterr().err.strip()
    assert "line 2" in error and "16,777,216 characters" in error and "\n" not in error, error


ENCODED = {
    "utf16.tsv": ("file_name\ttext\npics/0.png\ta\n".encode("utf-16"), "UTF-8"),
    "utf16be.csv": ("file_name,text\npics/0.png,a\n".encode("utf-16-be"), "UTF-8"),
    "utf16.jsonl": ('{"file_name": "pics/0.png"}\n'.encode("utf-16"), "UTF-8"),
    "excel.csv": (b"sep=;\nfile_name;text\npics/0.png;a\n", "sep="),
    "excel_bom.csv": (b"\xef\xbb\xbfsep=,\r\nfile_name,text\r\npics/0.png,a\r\n", "sep="),
    "packed.csv": (gzip.compress(b"file_name,text\npics/0.png,a\n"), "decompress"),
    "array.jsonl": (b'[{"file_name": "pics/0.png", "text": "a"}]', "an object a line"),
    "windows.csv": (b"file_name,text\npics\\0.png,a\n", "/ instead of"),
    "captions.json": (b"[]", "JSON Lines"),
    "x.tar.gz": (b"", "decompress"),
    "x.TGZ": (b"", "decompress"),
    "x.zip": (b"", "unpack"),
    "x.arrow": (b"", "save_to_disk"),
    "x.xlsx": (b"", "CSV"),
}


@pytest.mark.parametrize("name", ENCODED)
def test_another_kind_of_file_says_what_to_do(tmp_path, name, capsys):
    content, remedy = ENCODED[name]
    (fill(tmp_path / "mine") / name).write_bytes(content)
    assert build(tmp_path / "mine" / name, tmp_path / "out") == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "\n" not in error and remedy in error, error
    if name.startswith("x."):
        (tmp_path / "mine" / name).rename(tmp_path / name)
        (tmp_path / "alone").mkdir()
        (tmp_path / name).rename(tmp_path / "alone" / name)
        assert build(tmp_path / "alone", tmp_path / "out") == 2
        assert remedy in capsys.readouterr().err


@pytest.mark.parametrize("address", ["s3://b/x.tar", "gs://b/x", "https://h/x.csv", "pipe:cat x"])
def test_what_is_no_source_of_its_command_is_refused(tmp_path, address, capsys):
    """`build` reads Parquet and tars of an object store, `download` tables; no program is run."""
    commands = [
        ["index", address, "--out", str(tmp_path / "out")],
        ["build", "--source", address, "--format", "folder", "--out", str(tmp_path / "out")],
    ]
    if address.startswith("pipe:"):
        commands += [
            ["build", "--source", address, "--out", str(tmp_path / "out")],
            ["download", address, str(tmp_path / "out"), "--python", str(shutil.which("true"))],
        ]
    for command in commands:
        assert main(command) == 2, command
        error = capsys.readouterr().err.strip()
        assert address in error, error
        assert any(word in error for word in ("object store", "--format")), error
        assert "\n" not in error and not (tmp_path / "out").exists()


def test_braces_name_files_as_a_shell_does(tmp_path):
    fill(tmp_path)
    for i in range(6):
        (tmp_path / f"{i:03d}.csv").write_text(f"file_name,text\npics/{i}.png,{caption(i)}\n")
    wanted = sorted(tmp_path / f"{i:03d}.csv" for i in (1, 2, 3, 5))
    assert find_files(str(tmp_path / "{001..003,005}.csv"), (".csv",)) == wanted
    assert find_files(str(tmp_path / "00{1..3}.csv"), (".csv",)) == wanted[:3]
    assert build(tmp_path / "{000..002}.csv", tmp_path / "out") == 0
    assert read_manifest(tmp_path / "out").samples == 3
    braces = "{" + f"{tmp_path}/000.csv,{tmp_path}/004.csv" + "}"
    assert build(Path(braces), tmp_path / "braces") == 0
    assert read_manifest(tmp_path / "braces").samples == 2
    with pytest.raises(FileNotFoundError, match=r"006\.csv"):
        find_files(str(tmp_path / "{004..006}.csv"), (".csv",))
    with pytest.raises(ValueError, match=r"^--table=.*\{3\.\.1\} is not an ascending range"):
        find_files(str(tmp_path / "{3..1}.csv"), (".csv",), "--table")


def test_a_folder_whose_name_looks_like_a_pattern_is_a_folder(tmp_path):
    folder = tmp_path / "f[x]"
    folder.mkdir()
    for i in range(2):
        (folder / f"{i}.csv").write_text("a\n1\n")
    wanted = [folder / "0.csv", folder / "1.csv"]
    assert find_files(str(folder / "{0..1}.csv"), (".csv",)) == wanted
    assert find_files(str(folder / "0.csv"), (".csv",)) == wanted[:1]


@pytest.mark.parametrize("ending", ["csv", "tar", "parquet"])
def test_endings_are_known_in_any_case(tmp_path, ending):
    names = [f"0.{ending}", f"C.{ending.upper()}"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    assert [file.name for file in find_files(str(tmp_path), (f".{ending}",))] == names


def test_a_folder_of_parquet_in_capitals_is_read(tmp_path):
    write_corpus(tmp_path / "A.PARQUET", {"image": [encoded(picture(0))], "caption": ["a"]})
    assert len(list(Corpus(SourceOptions(source=str(tmp_path))).selected())) == 1
