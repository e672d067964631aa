"""Writes docs/options.md, the reference of every option: python docs/options.py"""

import argparse
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from data_prep.__main__ import COMMANDS  # noqa: E402
from pretrain.cli import Command, held_by, parser  # noqa: E402

PAGE = ROOT / "docs/options.md"
_HEAD = """# Options

For whoever looks up an option. This page is made from the code: `python docs/options.py`.
`--help-all` of a command says the same. Dashes and underscores are alike; a recipe
(`--config FILE.yaml`) holds the same names, nested where there are dots.
"""
_NO_OPTIONS = {"_ActionConfigLoad", "_ActionPrintConfig", "_HelpAction", "ActionConfigFile"}
_PRETRAIN = {
    "pretrain.recipe.parsing": "TRAIN",
    "pretrain.plan.__main__": "PLAN",
    "pretrain.evaluate": "EVALUATE",
    "pretrain.export.__main__": "EXPORT",
    "pretrain.convert": "CONVERT",
    "pretrain.average": "AVERAGE",
    "pretrain.report.__main__": "REPORT",
    "pretrain.search.__main__": "SEARCH",
}


def commands() -> list[Command]:
    ours = [getattr(importlib.import_module(name), one) for name, one in _PRETRAIN.items()]
    return [*ours, *COMMANDS.values()]


def rows(command: Command) -> Iterator[tuple[str, str, str]]:
    """(option, default, what it is) of a command, in the order of the code."""
    inside: tuple[str, Any] | None = None  # what the option behind it may hold
    for action in parser(command)._actions:
        if (found := held_by(action)) is not None:
            inside = found
        elif action.help is not argparse.SUPPRESS and type(action).__name__ not in _NO_OPTIONS:
            is_option = bool(action.option_strings)
            needed = getattr(action, "required", False) or not is_option
            name = f"--{action.dest}" if is_option else action.dest.upper()
            told = " ".join((action.help or "").replace("(default: %(default)s)", "").split())
            yield name, "needed" if needed else _text(action.default), told
            if inside is not None:
                yield from _held(*inside)
                inside = None


def _held(prefix: str, kind: Any) -> Iterator[tuple[str, str, str]]:
    """The options of the dataclass that an option holds, or holds several of by name."""
    options = (f"{kind.__module__}:{kind.__qualname__}",)
    for name, default, told in rows(Command(program="", description="", run="", options=options)):
        yield name.replace("--", f"--{prefix}.", 1), default, told


def _text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"`{value}`" if value not in ({}, [], "") else "none"


def table(command: Command) -> str:
    lines = ["| option | default | what it is |", "|---|---|---|"]
    for name, default, told in rows(command):
        told = told.replace("|", "\\|")
        lines.append(f"| `{name}` | {default} | {told} |")
    return "\n".join(lines)


def page() -> str:
    parts = [_HEAD]
    for command in commands():
        parts += [f"## {command.program}\n", command.description + "\n", table(command) + "\n"]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
