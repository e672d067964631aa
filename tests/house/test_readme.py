"""The commands of README.md and of the pages run as they are written.

Not run, only read by the parsers: `git clone`, `make` and what fetches over the network; sbatch,
which tests/slurm runs; the published recipes, which take GPU-days.
"""

import importlib.util
import io
import itertools
import json
import os
import pkgutil
import re
import shlex
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from siglip_folders import a_siglip_folder
from tiny_datasets import CORPUS
from tiny_runs import ROOT

from data_prep.__main__ import COMMANDS
from pretrain.cli import Command, run, values
from pretrain.convert import CONVERT
from pretrain.evaluate import EVALUATE
from pretrain.export.__main__ import EXPORT
from pretrain.plan.__main__ import PLAN
from pretrain.preflight import PREFLIGHT
from pretrain.recipe.parsing import TRAIN
from pretrain.report.__main__ import REPORT
from pretrain.search.__main__ import SEARCH

PAGES = sorted({ROOT / "README.md", ROOT / "slurm/README.md", *ROOT.glob("docs/*.md")})
DOORS = {
    one.program.split()[-1]: one
    for one in (TRAIN, PLAN, PREFLIGHT, EVALUATE, EXPORT, CONVERT, REPORT, SEARCH)
}
TINY = "pretrain/recipes/tiny.yaml"
# What stands for something of the reader's where a page is only parsed.
OWN = ["pretrain/recipes/own.yaml", "--data.train", "DATASET", "--run_dir", "RUN"]
PARSED = {"RECIPE.yaml": [TINY], "R.yaml": OWN, "OUT/recipe.yaml": [TINY],
          "OUT/text.tokenizer": [TINY], "data/mine/train/tokenizer.model": [TINY],
          "data/food/train/tokenizer.model": [TINY],
    "runs/demo/export/text.tokenizer": [TINY],
          "...": ["--config", TINY], "…": []}  # fmt: skip
# What stands for something of the reader's where README is run, and what makes it small.
RUN = {"DIR": ["labelled"], "SOURCE": ["siglip"], "OUT": ["converted"],
       "runs/demo/export": ["runs/mine/export"], "2": ["1"]}  # fmt: skip
SMALL = ["--stages.reduced.epochs=1", "--stages.full.epochs=1", "--log.every_steps=1"]
SMALL += [
    f"--model.{tower}.{name}={value}"
    for tower in ("image", "text")
    for name, value in (("width", 32), ("depth", 1), ("heads", 2))
]
PROGRAM = re.compile(r"([A-Z_]+=\S* |sudo )*(python|torchrun|deepspeed|sbatch|git|make)\b")


def command_lines(page: str) -> Iterator[list[str]]:
    """The words of each command in a page's blocks, without prompt, comment and continuation."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", page, re.S | re.M)
    indented = re.findall(r"(?:^ {4}.*\n)+", re.sub(r"(?ms)^```.*?^```", "", page), re.M)
    for block in [*(text for language, text in fenced if not language), *indented]:
        for line in block.replace("\\\n", " ").splitlines():
            if PROGRAM.match(line := line.strip().removeprefix("$ ")):
                words = shlex.shlex(line, posix=True, punctuation_chars="&|;")
                words.whitespace_split = True
                for joins, command in itertools.groupby(words, lambda word: {*word} <= {*"&|;"}):
                    if not joins:
                        yield list(command)


def door(words: list[str]) -> tuple[Command, list[str]] | None:
    """A command of ours and its words; None for another program."""
    places = [n for n, word in enumerate(words) if word in ("-m", "--module")]
    templates = [n for n, word in enumerate(words) if word.endswith(".sbatch")]
    if templates:
        template, *rest = words[templates[0] :]
        if "pretrain_" in template:
            return TRAIN, ["--config", *rest]
        return (COMMANDS["build"], rest) if template.endswith("data_prep.sbatch") else None
    if not places:
        return None
    module, *rest = words[places[-1] + 1 :]
    if module == "data_prep":
        return COMMANDS[rest[0]], rest[1:]
    return (DOORS[module], rest) if module in DOORS else None


def replaced(words: list[str], table: dict[str, list[str]]) -> list[str]:
    return [new for word in words for new in table.get(word, [word])]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_is_understood(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in command_lines(page.read_text("utf-8")):
        if (found := door(replaced(words, PARSED))) is not None:
            command, rest = found
            try:
                read = values if command.read is None else pkgutil.resolve_name(command.read)
                read(command, rest)
            except SystemExit as printed:  # --print_config
                assert not printed.code, words
            except (ValueError, FileNotFoundError) as error:
                pytest.fail(f"{page.name}: {' '.join(words)}: {error}")


def test_the_pages_name_no_module_that_is_not_there():
    found = [words for page in PAGES for words in command_lines(page.read_text("utf-8"))]
    assert sum(door(replaced(words, PARSED)) is not None for words in found) > 40
    for words in found:
        for place, word in enumerate(words[:-1]):
            if word == "-m":
                assert importlib.util.find_spec(words[place + 1]), words


def section(title: str) -> str:
    page = (ROOT / "README.md").read_text("utf-8")
    return page[page.index(f"## {title}\n") :].partition("\n## ")[0]


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A folder like a fresh clone, with what README's placeholders stand for."""
    for name in ("pretrain", "data_prep", "ds_configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    rows = pyarrow.parquet.read_table(CORPUS).slice(0, 340).to_pylist()
    for place, row in enumerate(rows):
        folder = tmp_path / ("my_pictures" if place < 300 else "my_held_out")
        folder.mkdir(exist_ok=True)
        (folder / f"{place:03d}.png").write_bytes(row["image"])
        (folder / f"{place:03d}.txt").write_text(row["caption"])
    for name, row in (("cat", rows[0]), ("dog", rows[1])):
        (tmp_path / f"{name}.png").write_bytes(row["image"])
    labelled_tar(tmp_path / "labelled/0.tar", [row["image"] for row in rows[:6]])
    a_siglip_folder(tmp_path / "siglip")
    return tmp_path


def labelled_tar(path: Path, pictures: list[bytes]) -> None:
    path.parent.mkdir()
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for place, content in enumerate(pictures):
            for ending, body in (("png", content), ("cls", str(place).encode())):
                member = tarfile.TarInfo(f"{place}.{ending}")
                member.size = len(body)
                tar.addfile(member, io.BytesIO(body))


def in_a_process(words: list[str], *, until: str = "") -> str:
    """A command as a shell starts it, to its end or, with Ctrl-C, to a line that has `until`."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as started:
        assert started.stdout is not None
        told = ""
        for line in started.stdout:
            told += line
            if until and until in line:
                started.send_signal(signal.SIGINT)
        assert started.wait(60) == (130 if until else 0), told
    return told


def test_readme_runs_as_it_is_written(checkout):
    """Your own pictures, from the folder to the search page; then evaluate, export, use."""
    for words in command_lines(section("Your own pictures")):
        if (found := door(words)) is None:
            assert words[0] in ("git", "cd", "make", "source"), words
        elif found[0] is TRAIN:
            assert "finished" in in_a_process([*replaced(words, RUN), *SMALL])
        elif found[0] is SEARCH:
            told = in_a_process([*words, "--port", "0"], until="http://127.0.0.1:")
            assert "300 pictures of data/mine/train" in told
        else:
            assert run(*found) == 0, words
    assert {path.name for path in (checkout / "data/mine").iterdir()} == {"train", "inspect.html"}
    assert len((checkout / "runs/mine/metrics.jsonl").read_text().splitlines()) > 4

    use = section("Evaluate, export, use")
    for words in command_lines(use):
        found = door(replaced(words, RUN))
        assert found is not None and run(*found) == 0, words
    points = json.loads((checkout / "runs/mine/evaluation.json").read_text())["points"]
    judged = {(f["task"], f["set"]) for point in points for f in point["figures"]}
    assert {("retrieval", "held_out"), ("classification", "labelled")} <= judged, judged
    assert (checkout / "converted/model.safetensors").exists()

    (snippet,) = re.findall(r"^```python\n(.*?)^```", use, re.S | re.M)
    names: dict[str, Any] = {}
    exec(snippet.replace("runs/demo", "runs/mine"), names)
    assert names["features"].shape == (2, 256)
    norms = names["features"].double().norm(dim=1)
    assert abs(norms - 1).max() < 1e-6, norms
