"""Stages on the command line: a length replaces one of another kind, dots name new stages."""

import json
from collections.abc import Sequence
from typing import Any

import yaml

from pretrain.base.spelling import config_files
from pretrain.base.yaml_files import read_yaml

# Of each group a stage has one.
_ONE_OF = (("steps", "samples", "epochs"), ("warmup_steps", "warmup_share"))
# What a stage cannot be without, beside a length.
_NEEDED = ("global_batch_samples", "base_learning_rate", "tokens.image_px", "tokens.text_tokens")


def with_new_stages(words: Sequence[str]) -> list[str]:
    """The words, where all that `--stages.NEW.OPTION VALUE` say of a stage that no file has is one
    option. What is not enough for a stage is a slip of the hand, and stays as it is. ValueError
    where it is nearly one."""
    known = {name for path in config_files(words) for name in _stages(read_yaml(path))}
    found: dict[str, dict[str, Any]] = {}
    rest: list[str] = []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        name, equals, value = word.partition("=")
        parts = name.replace("-", "_").split(".")
        if parts[0] != "__stages" or len(parts) < 3 or parts[1] in known or not known:
            rest.append(word)
            continue
        if not equals and waiting and not waiting[0].startswith("--"):
            value = waiting.pop(0)
        place = found.setdefault(name.split(".")[1], {})
        for part in parts[2:-1]:
            place = place.setdefault(part, {})
        place[parts[-1]] = yaml.safe_load(value) if value else True
    for stage, options in found.items():
        lacking = [option for option in _NEEDED if not _has(options, option)]
        if not any(kind in options for kind in _ONE_OF[0]):
            lacking.append("samples (or steps, epochs)")
        if lacking:
            raise ValueError(
                f"--stages.{stage}: there is no stages.{stage}, stages has {sorted(known)}; a new "
                f"one comes last, and still needs {', '.join(lacking)}"
            )
        rest.append(f"--stages.{stage}={json.dumps(options)}")
    return rest


def replace_lengths(into: dict[str, Any], new: dict[str, Any]) -> None:
    """Take out of earlier files' stages the lengths and warmups of which a later file gives another
    kind."""
    before = _stages(into)
    for name, options in _stages(new).items():
        for kind in _others(options if isinstance(options, dict) else {}):
            if isinstance(before.get(name), dict) and kind not in options:
                before[name].pop(kind, None)


def with_one_length(words: Sequence[str]) -> list[str]:
    """Spelled words, where a length or a warmup of one kind takes the place of the recipe's of
    another kind."""
    typed: dict[str, dict[str, Any]] = {}
    for word in words:
        name, _, value = word.removeprefix("--").partition("=")
        parts = name.split(".")
        if len(parts) == 3 and parts[0] == "stages":
            typed.setdefault(parts[1], {})[parts[2]] = None if value == "null" else value
    nulls = [
        f"--stages.{stage}.{kind}=null"
        for stage, options in typed.items()
        for kind in _others(options)
        if kind not in options
    ]
    return [*nulls, *words]


def _stages(content: dict[str, Any]) -> dict[str, Any]:
    stages = content.get("stages")
    return stages if isinstance(stages, dict) else {}


def _others(options: dict[str, Any]) -> list[str]:
    """The kinds of length and warmup that give way to those of a stage's options."""
    return [
        other
        for group in _ONE_OF
        if any(options.get(kind) is not None for kind in group)
        for other in group
    ]


def _has(options: dict[str, Any], dotted: str) -> bool:
    for part in dotted.split("."):
        if not isinstance(options, dict) or part not in options:
            return False
        options = options[part]
    return True
