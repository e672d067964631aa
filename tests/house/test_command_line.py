"""One door for every command: how options are written, what a mistake costs, what help says."""

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep.__main__ import COMMANDS
from data_prep.__main__ import main as data_prep
from pretrain.cli import Command, help_of, run, values
from pretrain.convert import CONVERT
from pretrain.evaluate import EVALUATE
from pretrain.export.__main__ import EXPORT
from pretrain.plan.__main__ import PLAN
from pretrain.preflight import PREFLIGHT
from pretrain.recipe.parsing import TRAIN, parse
from pretrain.report.__main__ import REPORT
from pretrain.search.__main__ import SEARCH

ROOT = Path(__file__).resolve().parents[2]
TINY = str(ROOT / "pretrain/recipes/tiny.yaml")
ALL = [TRAIN, PLAN, PREFLIGHT, EVALUATE, EXPORT, CONVERT, REPORT, SEARCH, *COMMANDS.values()]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a command that the tests make up"""

    learning_rate: float = 1.0
    """Any number."""
    steps: int | None = None
    """A whole number."""
    names: list[str] = dataclasses.field(default_factory=list)
    """Several."""
    fast: bool = False
    """A switch."""
    inner: dict[str, float] = dataclasses.field(default_factory=dict)
    """Numbers by name."""


def show(*given: object) -> str:
    """What the made-up command runs."""
    return repr(given[-1])


MADE_UP = Command(
    program="python -m made_up",
    description="Made up.",
    run=f"{__name__}:show",
    options=(f"{__name__}:Options",),
)


def read(*words: str) -> Options:
    return values(MADE_UP, words)[0]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--learning-rate", "-1e-3"], Options(learning_rate=-1e-3)),
        (["--learning_rate=2.5E+3"], Options(learning_rate=2500.0)),
        (["--steps", "-4"], Options(steps=-4)),
        (["--steps", "null"], Options()),
        (["--fast"], Options(fast=True)),
        (["--fast", "--steps", "1"], Options(fast=True, steps=1)),
        (["--fast", "false"], Options()),
        (["--names", "a={b}", "--names", "c: d, [e"], Options(names=["a={b}", "c: d, [e"])),
        (["--names", "[x, y]"], Options(names=["x", "y"])),
        (["--inner", "{a: 1, b-c: -2e-1}"], Options(inner={"a": 1.0, "b-c": -0.2})),
        (["--inner.b-c", "-3"], Options(inner={"b-c": -3.0})),
    ],
)
def test_options_are_read_as_they_are_written(words, wanted):
    assert read(*words) == wanted


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--learnin-rate", "1"], "did you mean 'learning_rate'?"),
        (["--steps", "1.5"], "--steps 1.5 is not understood: give a whole number or null"),
        (["--learning-rate", "nan"], "give a finite number"),
        (["--learning-rate", "inf"], "give a finite number"),
        (["--steps"], "--steps: a value is missing after it"),
        (["--steps", "--fast"], "--steps: a value is missing after it"),
        (["-s", "1"], "-s: options begin with two dashes"),
        (["word"], "'word' is one word too many"),
        (["--fast", "maybe"], "'maybe' is one word too many"),
        (["--steps.more", "1"], "--steps.more: steps has no options inside"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_is_possible(words, named, capsys):
    assert run(MADE_UP, words) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and named in told.err, told.err


@pytest.mark.parametrize(
    ("command", "words", "wanted"),
    [
        (TRAIN, "--image-px 64", ["stages.NAME.tokens.image_px"]),
        (TRAIN, "--imagepx 64", ["stages.NAME.tokens.image_px"]),
        (TRAIN, "--tokens.image_px=64", ["stages.NAME.tokens.image_px"]),
        (TRAIN, "--stages.full.image_px 64", ["stages.full.tokens.image_px"]),
        (TRAIN, "--tier 160", ["data.tier", "stages.NAME.tier", "evaluation.tier"]),
        (EVALUATE, "--templates x", ["classification.templates"]),
    ],
)
def test_an_option_that_stands_deeper_is_named_whole(command, words, wanted, capsys):
    config = ["--config", TINY] if command is TRAIN else []
    assert run(command, [*config, *words.split()]) == 2
    told = capsys.readouterr().err
    assert told.endswith(f"did you mean {' or '.join(map(repr, wanted))}?\n"), told
    for name in wanted:  # and help knows it
        run(command, ["--help-all"])
        shown = capsys.readouterr().out
        assert f"--{name.replace('.full.', '.NAME.')} " in shown, name


def test_a_key_that_stands_twice_is_named_with_both_lines(tmp_path):
    twice = tmp_path / "twice.yaml"
    twice.write_text("seed: 1\nstages:\n  full: {steps: 2}\n  full: {steps: 3}\n")
    with pytest.raises(ValueError, match=r"twice.yaml: the key 'full' is in line 3 and again in 4"):
        parse(["--config", TINY, "--config", str(twice)])


@pytest.mark.parametrize("value", ["x" * 10**5, "\x1b[2J\x00\u202e", "\ud800"])
def test_a_value_of_a_file_is_told_in_a_readable_line(value, tmp_path, capsys):
    (tmp_path / "r.yaml").write_text(f"seed: {json.dumps(value)}\n")
    assert run(TRAIN, ["--config", str(tmp_path / "r.yaml")]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and told[:-1].isprintable() and len(told) < 2100, told[:3000]
    assert "r.yaml" in told and ("seed" in told or "\ud800" in value), told


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("seed: [" + "0, " * 200_000 + "]", "bytes, over 131,072"),
        ("".join(f"{chr(98 + n)}: &{chr(98 + n)} [{f'*{chr(97 + n)}, ' * 9}]\n" for n in range(9)),
         "unfold to over"),
        ("seed: &b [*b]\n", "unfold to over"),
    ],
)  # fmt: skip
def test_a_recipe_that_unfolds_without_end_is_refused_at_once(content, told, tmp_path, capsys):
    (tmp_path / "r.yaml").write_text("a: &a [x, x]\n" + content)
    begin = time.monotonic()
    assert run(TRAIN, ["--config", str(tmp_path / "r.yaml")]) == 2
    assert told in capsys.readouterr().err and time.monotonic() - begin < 5


@pytest.mark.parametrize("value", ["[every_steps]", "7", "[]", "true", "null", ".nan", "[{a: 1}]"])
@pytest.mark.parametrize("option", ["checkpoint", "stages", "model", "data.loader", "model.text"])
def test_a_section_of_a_recipe_that_is_no_mapping_is_one_line(option, value, tmp_path):
    for name in reversed(option.split(".")):
        value = f"{{{name}: {value}}}"
    (tmp_path / "r.yaml").write_text(value)
    with pytest.raises(ValueError, match=f"r.yaml: {option}=.* not understood: give a mapping"):
        parse(["--config", TINY, "--config", str(tmp_path / "r.yaml")])


def test_what_is_no_yaml_or_no_path_is_one_line(tmp_path):
    for content in ("a: 1\n---\nb: 2\n", "data: {train: 7}", "data: {train: [x]}", "a: [}"):
        (tmp_path / "r.yaml").write_text(content)
        with pytest.raises(ValueError, match=r"r\.yaml") as raised:
            parse(["--config", TINY, "--config", str(tmp_path / "r.yaml")])
        assert "\n" not in str(raised.value)


def test_a_stored_recipe_that_is_no_yaml_is_one_line(tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text("stages: [}\n")
    for command in ([EVALUATE, "--abilities", "true"], [EXPORT]):
        assert run(command[0], ["--run_dir", str(tmp_path), *command[1:]]) == 2
        assert "recipe.yaml is not YAML" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["run_dir: {{RUN}}\n", "? [a, b]\n: 1\n", "{[a]: 1}\n"])
def test_a_key_that_is_no_name_is_one_line(content, tmp_path, capsys):
    (tmp_path / "r.yaml").write_text(content)
    assert run(TRAIN, ["--config", str(tmp_path / "r.yaml")]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "r.yaml" in told, told


def test_the_resolved_recipe_is_printed(capsys):
    words = ["--config", TINY, "--seed", "11", "--print_config"]
    assert run(TRAIN, words) == 0
    assert "seed: 11" in capsys.readouterr().out


def test_options_count_over_files_wherever_they_stand():
    for words in (["--seed", "7", "--config", TINY], ["--config", TINY, "--seed=7"]):
        assert parse(words)[0].seed == 7


@pytest.mark.parametrize("command", ALL, ids=lambda one: one.program)
def test_every_commands_help_says_what_one_types(command, capsys):
    assert run(command, ["--help-all"]) == 0
    shown = capsys.readouterr().out
    assert command.program in shown and "__main__" not in shown
    assert run(command, ["--help"]) == 0
    short = capsys.readouterr().out
    assert command.program in short
    if command.first:
        assert "--help-all" in short and len(short) < len(shown) / 4
        assert all(f"--{name}" in short for name in command.first)


@pytest.mark.parametrize("command", ALL, ids=lambda one: one.program)
def test_every_command_takes_dashes_and_underscores_and_names_an_unknown_option(command, capsys):
    for word in ("--no-such-thing", "--no_such_thing"):
        assert run(command, [word, "1"]) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and "no_such_thing" in told, told


def test_data_prep_names_its_commands(capsys):
    assert data_prep(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)
    for words, named in (([], "name a command"), (["biuld"], "did you mean 'build'?")):
        with pytest.raises(SystemExit) as ended:
            data_prep(words)
        told = capsys.readouterr().err
        assert ended.value.code == 2 and told.count("\n") == 1 and named in told


@pytest.mark.parametrize(
    "command",
    [
        "pretrain.train",
        "pretrain.plan",
        "pretrain.evaluate",
        "pretrain.export",
        "pretrain.search",
        "data_prep embed",
    ],
)
def test_a_mistake_needs_no_torch(command):
    module, *words = command.split()
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['x', *{words!r}, '--no-such-option', '1']\n"
        "try: runpy.run_module(sys.argv.pop(0) and "
        f"{module!r}, run_name='__main__', alter_sys=False)\n"
        "except SystemExit as ended: sys.exit(10 * ('torch' in sys.modules) + ended.code)\n"
    )
    code = code.replace("sys.argv.pop(0) and ", "")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and "no_such_option" in done.stderr


def test_help_shows_each_default():
    assert "default: 1.0" in help_of(MADE_UP, whole=True)
