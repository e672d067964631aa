"""The one door: what a command line is, for every command of both packages.

Options are the fields of dataclasses, `--a-b` or `--a_b`, with a value behind a space or `=`. A
mistake is one line on standard error that names the option and the nearest one, and exit status 2,
before anything slow is imported: commands name what they run, and it is imported when all is right.
"""

import argparse
import dataclasses
import importlib
import math
import re
import sys
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from pretrain.base.exit_codes import INTERRUPTED
from pretrain.base.faults import end_well, one_line_faults
from pretrain.base.spelling import meant, option_of, spell

if typing.TYPE_CHECKING:
    from jsonargparse import ArgumentParser

_HELP, _HELP_ALL = {"-h", "--help"}, {"--help-all", "--help_all"}


@dataclass(frozen=True, kw_only=True)
class Positional:
    """A word of a command line that no option stands before."""

    name: str
    help: str
    kind: type = Path
    many: bool = False


@dataclass(frozen=True, kw_only=True)
class Command:
    """What one can type, and what it runs."""

    program: str
    """As it is typed: `python -m data_prep build`."""
    description: str
    run: str
    """MODULE:FUNCTION, called with the positionals and then one object of each of `options`. What
    it returns is printed; a number is the exit status."""
    options: tuple[str, ...] = ()
    """MODULE:DATACLASS of the options."""
    positionals: tuple[Positional, ...] = ()
    first: tuple[str, ...] = ()
    """Options that people use first: `--help` shows these alone, `--help-all` the rest too."""
    read: str | None = None
    """MODULE:FUNCTION that makes the arguments of `run` of the words, where they are more than
    options and positionals."""
    takes_config: bool = False
    """Whether --config FILE.yaml gives options too."""


def run(command: Command, arguments: Sequence[str] | None = None) -> int:
    """Do what a command line asks for; returns the exit status: 0 done, 2 it cannot be met (one
    line says why), 130 interrupted, or the command's own."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with one_line_faults():
            if {*words} & (_HELP | _HELP_ALL):
                print(help_of(command, whole=not {*words} & _HELP or not command.first))
                return 0
            if inner := [word for word in words if re.fullmatch(r"--[\w.-]+\.help", word)]:
                parser(command).parse_args(inner[:1])  # prints, and exits
            read = values if command.read is None else _load(command.read)
            given = read(command, words)
            result = _load(command.run)(*given)
    except KeyboardInterrupt:
        print("error: interrupted; give the same command again to go on", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as ended:
        return int(ended.code or 0)
    if isinstance(result, int):
        return result
    if result is not None:
        print(result)
    return 0


def run_one_of(
    commands: Mapping[str, Command], program: str, arguments: Sequence[str] | None = None
) -> int:
    """`run` the command that the first word names."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in commands:
        return run(commands[words[0]], words[1:])
    if words and words[0] in _HELP | _HELP_ALL:
        lines = [f"  {name:<12}{command.description}" for name, command in commands.items()]
        print(f"usage: {program} COMMAND …; {program} COMMAND --help says more\n", *lines, sep="\n")
        return 0
    with one_line_faults():
        if not words:
            raise ValueError(f"name a command: {program} {'|'.join(commands)}")
        raise ValueError(f"{words[0]}: there is no such command; {meant(words[0], commands)}")


def end(code: int) -> NoReturn:
    """End the program with the exit status of its command."""
    if "torch" in sys.modules:
        end_well(code)
    sys.exit(code)


def values(command: Command, words: Sequence[str]) -> list[Any]:
    """The positionals, then one object of each of a command's dataclasses. ValueError or
    FileNotFoundError name the option, what was found and what is possible, in one line."""
    kinds = [_load(name) for name in command.options]
    spelled, rest = spell(words, kinds, takes_config=command.takes_config)
    _check_positionals(command, rest)
    _check_required(kinds, spelled)
    options = parser(command)
    try:
        parsed = options.parse_args([*spelled, *(["--", *rest] if rest else [])])
        given = options.instantiate(parsed)
    except (argparse.ArgumentError, ValueError) as error:
        told = " ".join(str(error).split())
        # Of options that may be null, jsonargparse tells all types that did not fit.
        own = re.search(r"Errors: - (.+?) - Expected a ", told)
        raise ValueError(told if own is None else own[1]) from error
    found = [getattr(given, one.name) or [] for one in command.positionals]
    for kind in kinds:
        names = [field.name for field in dataclasses.fields(kind)]
        found.append(kind(**{name: getattr(given, name) for name in names}))
    return found


def parser(command: Command) -> "ArgumentParser":
    """jsonargparse's parser of a command's positionals and options."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    result = ArgumentParser(
        prog=command.program,
        description=command.description,
        default_config_files=[],
        exit_on_error=False,
    )
    if command.takes_config:
        result.add_argument("--config", action="config", help="Recipe YAML; may be given again.")
    for one in command.positionals:
        how: dict[str, Any] = {"nargs": "*"} if one.many else {"metavar": one.name.upper()}
        result.add_argument(one.name, type=one.kind, help=one.help, **how)
    for name in command.options:
        result.add_class_arguments(_load(name), as_group=len(command.options) > 1)
    return result


def help_of(command: Command, *, whole: bool) -> str:
    """What a command takes; not `whole`: the options that people use first."""
    options = parser(command)
    if whole:
        return "\n".join([options.format_help(), *_help_inside(options)])
    chosen = {action.dest: action for action in options._actions}
    lines = [f"usage: {command.program} [options]", "", command.description, ""]
    for name in command.first:
        action = chosen[name]
        default = "" if action.default in (None, {}) else f" (default: {action.default})"
        told = " ".join(f"{action.help or ''}{default}".split())
        lines += [f"  --{name}", textwrap.indent(textwrap.fill(told, 90), "      ")]
    return "\n".join([*lines, "", f"{command.program} --help-all shows all options."])


def held_by(action: Any) -> tuple[str, Any] | None:
    """(dotted name, dataclass) of the options that a parser's option holds, or holds several of by
    NAME; None of one that holds none."""
    if type(action).__name__ != "_ActionHelpClassPath":
        return None
    (kind,) = action._help_types
    several = typing.get_origin(action._typehint) is dict
    return action.dest.removesuffix(".help") + ".NAME" * several, kind


def _help_inside(options: "ArgumentParser") -> Iterator[str]:
    """The help of the options that options hold, by their whole names."""
    from jsonargparse import ArgumentParser

    for name, kind in filter(None, map(held_by, options._actions)):
        inside = ArgumentParser(usage=argparse.SUPPRESS, add_help=False)
        inside.add_class_arguments(kind, name)
        yield inside.format_help()
        yield from _help_inside(inside)


def _load(name: str) -> Any:
    """What MODULE:NAME names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _check_positionals(command: Command, words: list[str]) -> None:
    most = math.inf if any(one.many for one in command.positionals) else len(command.positionals)
    least = sum(not one.many for one in command.positionals)
    if len(words) < least:
        missing = command.positionals[len(words)]
        raise ValueError(f"{command.program} needs {missing.name.upper()}: {missing.help}")
    if len(words) > most:
        raise ValueError(f"{words[int(most)]!r} is one word too many: options begin with --")


def _check_required(kinds: Sequence[Any], spelled: list[str]) -> None:
    given = {option_of(word) for word in spelled}
    for kind in kinds:
        for field in dataclasses.fields(kind):
            has = (field.default, field.default_factory) != (dataclasses.MISSING,) * 2
            if not has and field.name not in given and "config" not in given:
                raise ValueError(f"--{field.name} is required; --help explains it")
