"""The one door: what a command line is, for every command of both packages.

Options are the fields of dataclasses, `--a-b` or `--a_b`, with a value behind a space or `=`. A
mistake is one line on standard error that names the option and the nearest one, and exit status 2,
before anything slow is imported: commands name what they run, and it is imported when all is right.
"""

import argparse
import dataclasses
import difflib
import importlib
import itertools
import json
import math
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

import yaml

from pretrain.base.exit_codes import INTERRUPTED
from pretrain.base.faults import end_well, one_line_faults

if typing.TYPE_CHECKING:
    from jsonargparse import ArgumentParser

_HELP, _HELP_ALL = {"-h", "--help"}, {"--help-all", "--help_all"}
_TRUE_OR_FALSE = ("true", "false", "yes", "no")


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
            read = values if command.read is None else _load(command.read)
            given = read(command, words)
            result = _load(command.run)(*given)  # is imported only now, when all is right
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
        raise ValueError(f"{words[0]}: there is no such command; {_meant(words[0], commands)}")


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
        return options.format_help()
    chosen = {action.dest: action for action in options._actions}
    formatter = options._get_formatter()
    formatter.add_usage(None, [chosen[one.name] for one in command.positionals], [])
    formatter.add_text(command.description)
    formatter.start_section("first options")
    formatter.add_arguments([chosen[name] for name in command.first])
    formatter.end_section()
    formatter.add_text(f"{command.program} --help-all shows all options.")
    return formatter.format_help()


def spell(
    words: Sequence[str], kinds: Sequence[Any], *, takes_config: bool = False
) -> tuple[list[str], list[str]]:
    """(options as the parser wants them, the other words): files first, so that options count over
    them. A list option may be given again, item by item. ValueError for the first option of the
    command line, or key or value of its --config files, that the dataclasses do not have."""
    hints: dict[str, Any] = {}
    for kind in kinds:
        hints |= typing.get_type_hints(kind)
    given: dict[str, Any] = {}
    if takes_config:
        for path in config_files(words):
            content = read_yaml(path)
            _check(content, hints, "", str(path))
            _merge(given, content)
    files: list[str] = []
    spelled: list[str] = []
    rest: list[str] = []
    lists: dict[str, list[str]] = {}
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        if word == "--":
            rest += waiting
            break
        if not word.startswith("-") or word == "-" or _is_number(word):
            rest.append(word)
            continue
        if not word.startswith("--"):
            raise ValueError(f"{word}: options begin with two dashes; --help lists them")
        name, equals, value = word[2:].partition("=")
        if takes_config and name in ("config", "print_config"):
            option, kind = name, str
        else:
            option, kind = _option(name.rstrip("+"), hints, given)
        if not equals:
            value = _value_behind(name, kind, waiting)
        if (
            kind is not str
            and not value.startswith(("{", "["))
            and (wanted := _refusal(value, kind))
        ):
            raise ValueError(f"--{name} {value} is not understood: {wanted}")
        item = _item(kind)
        if item is not None and not value.startswith("[") and value != "null":
            value = value if item in (int, float) else json.dumps(value, ensure_ascii=False)
            lists.setdefault(option, []).append(value)
        else:
            (files if option == "config" else spelled).append(f"--{option}={value}")
    spelled += [f"--{option}=[{', '.join(items)}]" for option, items in lists.items()]
    return files + spelled, rest


def option_of(word: str) -> str:
    """The outermost name of a spelled option."""
    return word.removeprefix("--").partition("=")[0].rstrip("+").partition(".")[0]


def config_files(words: Sequence[str]) -> Iterator[Path]:
    """The files that --config names, in order."""
    for word, following in itertools.pairwise([*words, "--"]):
        name, equals, value = word.partition("=")
        if name == "--config":
            if not equals and following.startswith("--"):
                raise ValueError("--config: the name of a recipe file is missing after it")
            yield Path(value if equals else following)


class _UniqueKeys(yaml.SafeLoader):
    """YAML whose mappings have each key once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            name, line = key.value, key.start_mark.line + 1
            if name in lines and name != "<<":
                raise ValueError(f"the key {name!r} stands in line {lines[name]} and in {line}")
            lines[name] = line
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The options of a YAML file; ValueError or FileNotFoundError where there are none."""
    if not path.is_file():
        raise FileNotFoundError(
            f"--config {path}: there is no such file; pretrain/recipes/ holds those that come along"
        )
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not YAML: it is no UTF-8 text") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}: keep one of them") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no options: see pretrain/recipes/demo.yaml")
    return content


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
                raise ValueError(f"--{field.name} is needed: --help says what it is")


def _value_behind(name: str, kind: Any, waiting: list[str]) -> str:
    """The value of an option that is written without `=`; a switch may stand alone."""
    following = waiting[0] if waiting else "--"
    if kind is bool and following.lower() not in _TRUE_OR_FALSE:
        return "true"
    if following.startswith("--"):
        raise ValueError(f"--{name}: a value is missing after it")
    return waiting.pop(0)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _merge(into: dict[str, Any], new: dict[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _hints(kind: Any) -> dict[str, Any] | None:
    """The options inside of a dataclass, also of one that may be null; None of anything else."""
    if isinstance(kind, dict):
        return kind
    for choice in _choices(kind):
        if dataclasses.is_dataclass(choice):
            return typing.get_type_hints(choice)
    return None


def _choices(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _mapped(kind: Any) -> Any:
    """The type of a dictionary's values; None of anything else."""
    found = [get_args(choice)[1] for choice in _choices(kind) if get_origin(choice) is dict]
    return found[0] if found else None


def _item(kind: Any) -> Any:
    """The type of a list's items; None of anything else."""
    found = [get_args(choice)[0] for choice in _choices(kind) if get_origin(choice) is list]
    return found[0] if found else None


def _check(value: Any, kind: Any, where: str, source: str) -> None:
    """Every key and value of a YAML file against the option's type."""
    hints, mapped = _hints(kind), _mapped(kind)
    if hints is not None and isinstance(value, dict):
        for name, inner in value.items():
            option = f"{where}{name}"
            if name not in hints:
                raise ValueError(f"{source}: {_unknown(option, str(name), hints)}")
            _check(inner, hints[name], option + ".", source)
    elif mapped is not None and isinstance(value, dict):
        for name, inner in value.items():
            _check(inner, mapped, f"{where}{name}.", source)
    elif wanted := _refusal(value, kind):
        option = where.removesuffix(".")
        raise ValueError(f"{source}: {option}={value!r} is not understood: {wanted}")


def _option(option: str, kind: Any, given: Any) -> tuple[str, Any]:
    """(an option's name as the dataclasses spell it, its type). `given`: what files gave."""
    path = option.split(".")
    for place, word in enumerate(path):
        name = word
        if (hints := _hints(kind)) is not None:
            name = path[place] = word.replace("-", "_")
            if name not in hints:
                raise ValueError(_unknown(f"--{option}", name, hints, ".".join(path[:place])))
            kind = hints[name]
        elif (mapped := _mapped(kind)) is not None:
            kind = mapped
            known = sorted(given) if isinstance(given, dict) else []
            if path[place + 1 :] and known and name not in known:
                here = ".".join(path[:place])
                raise ValueError(f"--{option}: there is no {here}.{name}, {here} has {known}")
        else:
            raise ValueError(f"--{option}: {'.'.join(path[:place])} has nothing inside")
        given = given.get(name) if isinstance(given, dict) else None
    return ".".join(path), kind


def _unknown(option: str, name: str, hints: Mapping[str, Any], where: str = "") -> str:
    inside = f" in {where}" if where else ""
    return f"{option}: there is no option {name!r}{inside}; {_meant(name, hints)}"


def _meant(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"choose one of {sorted(known)}" if len(known) < 25 else "--help lists them"


def _refusal(value: Any, kind: Any) -> str | None:
    """What is needed where a plain value does not fit its option's type; None where it does, or
    where only the parser can tell."""
    wanted = []
    for choice in _choices(kind):
        fits, name = _fits(value, choice)
        if fits:
            return None
        wanted.append(name)
    return "give " + " or ".join(wanted)


def _fits(value: Any, kind: Any) -> tuple[bool, str]:
    text = str(value)
    if kind is type(None):
        return value is None or text == "null", "null"
    if get_origin(kind) is Literal:
        return value in get_args(kind), ", ".join(map(str, get_args(kind)))
    if kind is bool:
        return text.lower() in _TRUE_OR_FALSE, "true or false"
    if kind in (int, float):
        try:
            number = kind(text)
        except (ValueError, OverflowError):
            return False, "a whole number" if kind is int else "a number"
        return math.isfinite(number) and not isinstance(value, bool), "a finite number"
    if kind is Path:
        return value is not None and text not in ("null", "") and "\0" not in text, "a path"
    return True, ""
