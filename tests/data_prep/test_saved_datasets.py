"""A folder that Hugging Face `datasets` saved gives the same dataset as the Parquet file."""

import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from data_prep_corpus import caption, encoded, picture, write_corpus

from data_prep.sources import Corpus, Record, SourceOptions


def records(source: Path, where: str | None = None) -> list[Record]:
    corpus = Corpus(SourceOptions(source=str(source), where=where))
    return list(corpus.records(["caption", "number"], with_images=True))


def test_saved_dataset_gives_the_same_records_as_parquet(tmp_path):
    columns = {
        "image": [encoded(picture(i)) for i in range(20)],
        "caption": [caption(i) for i in range(20)],
        "number": list(range(20)),
    }
    parquet = write_corpus(tmp_path / "corpus.parquet", columns)
    datasets.Dataset.from_dict(columns).save_to_disk(str(tmp_path / "saved"))
    assert records(tmp_path / "saved") == records(parquet)
    where = "number % 3 = 1"
    assert records(tmp_path / "saved", where) == records(parquet, where)
    assert len(records(parquet, where)) == 7


def test_pictures_that_datasets_encodes_are_read(tmp_path):
    features = datasets.Features(
        image=datasets.Image(), caption=datasets.Value("string"), number=datasets.Value("int64")
    )
    rows = {"image": [picture(0)], "caption": ["a picture"], "number": [0]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    (record,) = records(tmp_path / "saved")
    assert record.image is not None and record.image[:4] == b"\x89PNG"


def test_a_folder_of_several_splits_names_them(tmp_path):
    one = datasets.Dataset.from_dict({"image": [b"x"], "caption": ["a"]})
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(str(tmp_path / "both"))
    with pytest.raises(ValueError, match=r"\['test', 'train'\]"):
        Corpus(SourceOptions(source=str(tmp_path / "both")))


def test_a_damaged_file_is_named(tmp_path):
    saved = tmp_path / "saved"
    datasets.Dataset.from_dict({"image": [b"x" * 9000], "caption": ["a"]}).save_to_disk(str(saved))
    (file,) = saved.glob("*.arrow")
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"saved cannot be read \(.*save the dataset again"):
        Corpus(SourceOptions(source=str(saved)))


def test_data_preparation_runs_without_torch(tmp_path):
    datasets.Dataset.from_dict({"image": [encoded(picture(0))], "caption": ["a"]}).save_to_disk(
        str(tmp_path / "saved")
    )
    code = (
        "import sys\n"
        "from data_prep.__main__ import main\n"
        f"failed = main(['build', '--source', {str(tmp_path / 'saved')!r}, "
        f"'--out', {str(tmp_path / 'out')!r}])\n"
        "sys.exit(failed or ('torch was imported' if 'torch' in sys.modules else 0))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
    assert (tmp_path / "out" / "manifest.json").is_file()
