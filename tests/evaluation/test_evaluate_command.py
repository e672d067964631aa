"""What `python -m pretrain.evaluate` takes, and which tasks that asks for."""

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import ROOT

from pretrain.cli import values
from pretrain.evaluate import EVALUATE, main
from pretrain.evaluation.options import (
    AbilitiesOptions,
    ClassificationOptions,
    EvaluateOptions,
    EvaluationOptions,
    LongTextsOptions,
    ProbeOptions,
    SweepOptions,
    ZeroShotOptions,
)
from pretrain.evaluation_command import choose_tasks


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("--sets.a x --sets.b=y --captions [label,phrase] --image-px 32",
         {"sets": {"a": Path("x"), "b": Path("y")}, "captions": ["label", "phrase"],
          "image_px": 32}),
        ("--classification.images d --classification.classes c.txt",
         {"classification": ClassificationOptions(images=Path("d"), classes=Path("c.txt"))}),
        ("--probe.test b --probe.train a --probe.inverse-penalty 3",
         {"probe": ProbeOptions(train=Path("a"), test=Path("b"), inverse_penalty=3.0)}),
        ("--abilities true", {"abilities": True}),
        ("--abilities.pictures 40", {"abilities": AbilitiesOptions(pictures=40)}),
        ("--long-texts.sets.wiki d --long_texts.caption story",
         {"long_texts": LongTextsOptions(sets={"wiki": Path("d")}, caption="story")}),
        ("--tokens.image_px [32,48] --tokens.plot f.svg",
         {"tokens": SweepOptions(image_px=[32, 48], plot=Path("f.svg"))}),
    ],
)  # fmt: skip
def test_a_command_line_is_these_options(words, options):
    assert values(EVALUATE, ["--model", "m", *words.split()]) == [
        EvaluateOptions(model=Path("m"), **options)
    ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--model m --stag full", "--stag: there is no option 'stag'; did you mean 'stage'?"),
        ("--model m --run_dir r", "--model m, --run_dir r, --watch None: give one of them, the "
         "folder of an exported model or of a run, or of a run to watch"),
        ("--model m --abilities.pictures 0", "abilities.pictures=0: it must be positive"),
        ("--model m --probe.train a --probe.test b --probe.neighbours 0",
         "probe.neighbours=0: it must be positive"),
        ("--model m --tokens.image_px [32] --tokens.plot f.txt",
         "tokens.plot=f.txt: name a file ending in .svg, .png, .pdf"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(words, told, capsys):
    assert main(words.split()) == 2
    assert capsys.readouterr().err == f"error: {told}\n"


def test_a_mistake_costs_no_import_of_torch():
    code = (
        "import sys; from pretrain.evaluate import main; "
        "code = main(['--model', 'm', '--watch', 'r']); "
        "sys.exit(code if 'torch' not in sys.modules else 9)"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2, ended.stderr


def test_sets_keep_the_runs_tasks_and_any_other_task_is_judged_alone(tmp_path):
    shot = {"kind": ZeroShotOptions(prompts=["{}"])}
    own = EvaluationOptions(
        sets={"held": tmp_path}, zero_shot=shot, abilities=True, captions=["b"], batch_samples=7
    )
    model = Path("m")
    assert choose_tasks(EvaluateOptions(model=model), own) == own
    probe = ProbeOptions(train=Path("a"), test=Path("b"))
    assert choose_tasks(EvaluateOptions(model=model, probe=probe), own) == EvaluationOptions(
        probe=probe, captions=["b"], batch_samples=7
    )
    both = choose_tasks(EvaluateOptions(model=model, captions=["a"]), own)
    assert (both.sets, both.captions, both.abilities) == (own.sets, ["a"], True)
