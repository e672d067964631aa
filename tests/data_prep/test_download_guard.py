"""Links of a table lead to web servers only: none reads this machine or its network."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from link_server import serving

from data_prep.download import guard

READ = """
import sys, urllib.request
try:
    with urllib.request.urlopen(sys.argv[1], timeout=5) as answer:
        print("read", len(answer.read()))
except Exception as error:
    print("refused", error)
"""


def read(tmp_path: Path, address: str, **environment: str) -> str:
    """What a program that imports the guard, as img2dataset's processes do, gets of an address."""
    (tmp_path / "guard").mkdir(exist_ok=True)
    shutil.copy(guard.__file__, tmp_path / "guard/sitecustomize.py")
    plain = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    done = subprocess.run(
        [sys.executable, "-c", READ, address],
        env={**plain, "PYTHONPATH": str(tmp_path / "guard"), **environment},
        capture_output=True,
        text=True,
    )
    return done.stdout


@pytest.mark.parametrize(
    "address",
    [
        Path(__file__).as_uri(),
        "data:text/plain,hello",
        "ftp://127.0.0.1/x",
        "FILE:///etc/passwd",
        "local_file:///etc/passwd",
    ],
)
def test_other_schemes_are_refused(tmp_path, address):
    for allowed in ({}, {guard.ALLOW: "1"}):
        assert read(tmp_path, address, **allowed).startswith("refused"), address


def test_private_addresses_are_refused_unless_they_are_asked_for(tmp_path):
    with serving() as address:
        good = f"{address}/good/3.jpg"
        assert "a link to a private address" in read(tmp_path, good)
        assert "private address" in read(tmp_path, good.replace("127.0.0.1", "localhost"))
        assert read(tmp_path, good, **{guard.ALLOW: "1"}).startswith("read ")
