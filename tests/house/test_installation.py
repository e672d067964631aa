"""The packages install, and then import from any folder, with the files that they read."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_an_installed_copy_imports_anywhere_and_has_its_files(tmp_path):
    source, installed = tmp_path / "source", tmp_path / "installed"
    source.mkdir()
    for name in ("pyproject.toml", "requirements.txt"):
        shutil.copy(ROOT / name, source)
    for name in ("pretrain", "data_prep", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", installed, source], check=True)

    assert {p.name for p in installed.iterdir() if "dist-info" not in p.name} == {
        "pretrain", "data_prep",
    }  # fmt: skip
    for package in ("pretrain", "data_prep"):
        wanted = files_of(ROOT / package)
        assert files_of(installed / package) == wanted
    (found,) = distributions(path=[str(installed)])
    assert any(line.startswith("deepspeed==") for line in found.requires or [])
    where = subprocess.run(
        [sys.executable, "-c", "import pretrain.dataset.manifest as s; print(s.__file__)"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert Path(where.strip()).is_relative_to(installed)


def files_of(package: Path) -> set[str]:
    return {
        str(path.relative_to(package))
        for path in package.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
