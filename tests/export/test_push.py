"""An export reaches a hub byte for byte, over HTTP; what hinders it is one line."""

import os
import subprocess
import sys

import pytest
from hub_server import TOKEN, hub
from tiny_runs import ROOT

NAME = "lab/clipa"


def export(run_dir, out, endpoint, *more, **environment):
    """The command, as a user gives it; no address but `endpoint` is asked for."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    return subprocess.run(
        [sys.executable, "-m", "pretrain.export", "--run_dir", str(run_dir), "--out", str(out),
         "--format", "native", "--push_to_hub", NAME, *more],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
        env={**inherited, "HF_ENDPOINT": endpoint, "HF_HOME": str(out.parent / "home"),
             **environment},
    )  # fmt: skip


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "aside", [pytest.param(False, marks=pytest.mark.soak, id="all inline"), True]
)
def test_the_folder_arrives_and_a_later_one_takes_its_place(tiny_run, tmp_path, aside):
    keys = {"HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": str(int(aside))}
    out = tmp_path / "model"
    with hub(large_aside=aside) as server:
        done = export(
            tiny_run, out, server.address, "--format", "transformers", "--private", "true", **keys
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.splitlines()[-1] == f"uploaded to {server.address}/{NAME}"
        assert server.private == {NAME: True}
        assert server.files[NAME] == content(out) and "modeling_clipa.py" in server.files[NAME]
        assert len(server.large) == int(aside)

        server.files[NAME]["image.onnx"] = b"of an older model"
        server.files[NAME]["notes.txt"] = b"by the owner"
        other = tmp_path / "other"
        other.mkdir()
        (other / "secret.txt").write_text("no part of an export")
        done = export(tiny_run, other, server.address, **keys)
        assert done.returncode == 0, done.stderr[-2000:]
        wanted = {**content(other), "notes.txt": b"by the owner"}
        del wanted["secret.txt"]
        assert server.files[NAME] == wanted and "modeling_clipa.py" not in wanted


@pytest.mark.soak
def test_a_public_repository_gets_nothing_that_is_to_be_private(tiny_run, tmp_path):
    with hub() as server:
        server.files[NAME], server.private[NAME] = {}, False
        done = export(
            tiny_run, tmp_path / "model", server.address, "--private", "true", HF_TOKEN=TOKEN
        )
        assert (done.returncode, server.files[NAME]) == (2, {})
        assert "there and public" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("token", "answer", "named"),
    [
        ("hf_wrong", None, "401: Invalid credentials"),
        pytest.param(
            *(TOKEN, (403, "You have no rights in lab"), "403: You have no rights in lab"),
            marks=pytest.mark.soak,
        ),
    ],
)
def test_a_refusal_is_one_line_and_the_export_stays(tiny_run, tmp_path, token, answer, named):
    with hub() as server:
        server.answer = answer
        done = export(tiny_run, tmp_path / "model", server.address, HF_TOKEN=token)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert named in line and "HF_TOKEN" in line
    assert (tmp_path / "model" / "config.json").is_file()


@pytest.mark.soak
def test_a_hub_that_is_not_there_is_one_line(tiny_run, tmp_path):
    with hub() as server:
        gone = server.address  # closed again: nobody listens
    done = export(tiny_run, tmp_path / "model", gone, HF_TOKEN=TOKEN)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"{gone} cannot be reached" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("more", "environment", "named"),
    [
        ([], {}, "needs a token, found none"),
        ([], {"HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        (["--push_to_hub", "clipa"], {"HF_TOKEN": TOKEN}, "OWNER/NAME"),
        (["--push_to_hub", "a/b/c"], {"HF_TOKEN": TOKEN}, "a/b/c"),
    ],
)
def test_what_is_plain_beforehand_is_said_before_anything_is_written(
    tiny_run, tmp_path, more, environment, named
):
    done = export(tiny_run, tmp_path / "model", "http://127.0.0.1:9", *more, **environment)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith("error: --push_to_hub") and named in line
    assert not (tmp_path / "model").exists()
