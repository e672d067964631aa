"""Mistakes in a command line and its YAML files, each named by the option's full dotted name.

The option parser checks the same, but says neither in which stage a value stands nor which name
was meant. So what it would refuse is looked for here first.
"""

import dataclasses
import difflib
import itertools
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml


def check_words(arguments: list[str], kind: type) -> None:
    """ValueError for the first option of a command line, or key or value of its --config files,
    that the dataclass `kind` does not have. FileNotFoundError for a file that is not there."""
    given: dict[str, Any] = {}
    for option, value in _options(arguments):
        if option == "config" and value == "--":
            raise ValueError("--config: the name of a recipe file is missing after it")
        if option == "config":
            content = _read(Path(value))
            _check(content, kind, "", value)
            _merge(given, content)
    for option, value in _options(arguments):
        if option not in ("config", "help", "print_config"):
            _check_path(option.rstrip("+").split("."), value, kind, given)


def known_options(content: dict[str, Any], kind: Any) -> dict[str, Any]:
    """The values of a YAML file whose options the dataclass `kind` has."""
    hints = typing.get_type_hints(kind)
    return {name: _known(value, hints[name]) for name, value in content.items() if name in hints}


def _known(value: Any, kind: Any) -> Any:
    if isinstance(value, dict) and dataclasses.is_dataclass(kind):
        return known_options(value, kind)
    if isinstance(value, dict) and get_origin(kind) is dict:
        return {name: _known(inner, get_args(kind)[1]) for name, inner in value.items()}
    return value


def _options(arguments: list[str]) -> Iterator[tuple[str, str]]:
    """(dotted name, value as text) of every --NAME VALUE and --NAME=VALUE."""
    words = [*arguments, "--"]
    for word, following in itertools.pairwise(words):
        if word.startswith("--") and word != "--":
            name, equals, value = word[2:].partition("=")
            yield name, value if equals else following


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"--config {path}: there is no such file; pretrain/recipes/ holds those that come along"
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no options: see pretrain/recipes/demo.yaml")
    return content


def _merge(into: dict[str, Any], new: dict[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _check(value: Any, kind: Any, where: str, source: str) -> None:
    """Every key and value of a YAML file against the option's type."""
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        hints = typing.get_type_hints(kind)
        for name, inner in value.items():
            option = f"{where}{name}"
            if name not in hints:
                raise ValueError(f"{source}: {_unknown(option, str(name), hints)}")
            _check(inner, hints[name], option + ".", source)
    elif get_origin(kind) is dict and isinstance(value, dict):
        for name, inner in value.items():
            _check(inner, get_args(kind)[1], f"{where}{name}.", source)
    elif wanted := _refusal(value, kind):
        option = where.removesuffix(".")
        raise ValueError(f"{source}: {option}={value!r} is not understood: {wanted}")


def _check_path(path: list[str], value: str, kind: Any, given: Any) -> None:
    """A dotted option of the command line, and its value where that is a single word."""
    option = ".".join(path)
    for place, name in enumerate(path):
        if dataclasses.is_dataclass(kind):
            hints = typing.get_type_hints(kind)
            if name not in hints:
                raise ValueError(_unknown(option, name, hints, ".".join(path[:place])))
            kind = hints[name]
        elif get_origin(kind) is dict:
            kind = get_args(kind)[1]
            known = sorted(given) if isinstance(given, dict) else []
            if path[place + 1 :] and name not in known:
                here = ".".join(path[:place])
                raise ValueError(f"--{option}: there is no {here}.{name}, {here} has {known}")
        given = given.get(name) if isinstance(given, dict) else None
    if not value.startswith(("{", "[", "--")) and (wanted := _refusal(value, kind)):
        raise ValueError(f"--{option} {value} is not understood: {wanted}")


def _unknown(option: str, name: str, hints: dict[str, Any], where: str = "") -> str:
    close = difflib.get_close_matches(name, hints, n=1)
    meant = f"did you mean {close[0]!r}?" if close else f"choose one of {sorted(hints)}"
    inside = f" in {where}" if where else ""
    return f"{option}: there is no option {name!r}{inside}; {meant}"


def _refusal(value: Any, kind: Any) -> str | None:
    """What is needed where a plain value does not fit its option's type; None where it does, or
    where only the parser can tell."""
    choices = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    wanted = []
    for choice in choices:
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
        return text.lower() in ("true", "false", "yes", "no"), "true or false"
    if kind in (int, float):
        try:
            kind(text)
        except ValueError:
            return False, "a whole number" if kind is int else "a number"
        return not isinstance(value, bool), "a number"
    if kind is Path:
        return value is not None and text != "null", "a path"
    return True, ""
