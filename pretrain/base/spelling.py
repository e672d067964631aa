"""The words of a command line and the keys of its YAML files, against the options of dataclasses.

The option parser checks the same, but says neither in which stage a value stands nor which name
was meant, and takes seconds to make. So what it would refuse is looked for here first.
"""

import copy
import dataclasses
import difflib
import itertools
import json
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pretrain.base.yaml_files import read_yaml

_MOST_MEANT = 3  # options of one name in several places
_TRUE_OR_FALSE = ("true", "false", "yes", "no")


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
            merge(given, content, hints)
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
        if takes_config and name == "print_config":
            spelled.append(word)
            continue
        if takes_config and name == "config":
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


def _value_behind(name: str, kind: Any, waiting: list[str]) -> str:
    """The value of an option that is written without `=`; a switch may stand alone."""
    following = waiting[0] if waiting else "--"
    alone = kind is bool or following.startswith("--")
    if bool in _choices(kind) and alone and following.lower() not in _TRUE_OR_FALSE:
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


def merge(into: dict[str, Any], new: dict[str, Any], kind: Any) -> None:
    """Lay a later file's options over earlier ones: option by option where they have options
    inside, as stages do, one of which null takes out; other values, lists and dictionaries too,
    take the place of the earlier.

    kind: the dataclass, or {name: type}, that the options are of."""
    hints, mapped = _hints(kind), _value_type(kind)
    for key, value in new.items():
        inner = mapped if hints is None else hints.get(key)
        inside = _hints(inner) is not None or _hints(_value_type(inner)) is not None
        if hints is None and inside and value is None:
            into.pop(key, None)
        elif inside and isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value, inner)
        else:
            into[key] = copy.deepcopy(value)


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


def _value_type(kind: Any) -> Any:
    """The type of a dictionary's values; None of anything else."""
    found = [get_args(choice)[1] for choice in _choices(kind) if get_origin(choice) is dict]
    return found[0] if found else None


def _item(kind: Any) -> Any:
    """The type of a list's items; None of anything else."""
    found = [get_args(choice)[0] for choice in _choices(kind) if get_origin(choice) is list]
    return found[0] if found else None


def _check(value: Any, kind: Any, where: str, source: str) -> None:
    """Every key and value of a YAML file against the option's type."""
    hints, mapped = _hints(kind), _value_type(kind)
    if hints is not None and isinstance(value, dict):
        place = where.count(".")
        for name, inner in value.items():
            option = f"{where}{name}"
            if name not in hints:
                raise ValueError(f"{source}: {_unknown(option, place, hints)}")
            _check(inner, hints[name], option + ".", source)
    elif mapped is not None and isinstance(value, dict):
        for name, inner in value.items():
            if inner is not None or _hints(mapped) is None:
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
                raise ValueError(_unknown(f"--{option}", place, hints))
            kind = hints[name]
        elif (mapped := _value_type(kind)) is not None:
            kind = mapped
            known = sorted(given) if isinstance(given, dict) else []
            if path[place + 1 :] and known and name not in known:
                here = ".".join(path[:place])
                raise ValueError(f"--{option}: there is no {here}.{name}, {here} has {known}")
        else:
            raise ValueError(f"--{option}: {'.'.join(path[:place])} has no options inside")
        given = given.get(name) if isinstance(given, dict) else None
    return ".".join(path), kind


def _unknown(option: str, place: int, hints: Mapping[str, Any]) -> str:
    """What to say of an option whose word at `place` is none of `hints`: where it stands deeper, or
    else what is nearest in name."""
    path = option.removeprefix("--").split(".")
    name, where = path[place].replace("-", "_"), ".".join(path[:place])
    asked = ".".join(path[place:]).replace("-", "_")
    deeper = list(_leaves(hints, f"{where}." if where else ""))
    found = [leaf for leaf in deeper if leaf.endswith(f".{asked}")]
    if not found and not difflib.get_close_matches(name, hints, n=1):
        ends = {leaf.rpartition(".")[2] for leaf in deeper}
        near = difflib.get_close_matches(asked.rpartition(".")[2], ends, n=1, cutoff=0.75)
        found = [leaf for leaf in deeper if near and leaf.endswith(f".{near[0]}")]
    inside = f" in {where}" if where else ""
    told = f"{option}: there is no option {name!r}{inside}; "
    if 0 < len(found) <= _MOST_MEANT:
        return f"{told}did you mean {' or '.join(map(repr, found))}?"
    return told + meant(name, hints)


def _leaves(hints: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """The whole names of all options that hold no others; NAME stands for one that users choose."""
    for name, kind in hints.items():
        own, held = _hints(kind), _hints(_value_type(kind))
        if own is not None:
            yield from _leaves(own, f"{prefix}{name}.")
        elif held is not None:
            yield from _leaves(held, f"{prefix}{name}.NAME.")
        else:
            yield f"{prefix}{name}"


def meant(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    if not known:
        return "there are none here"
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
    if dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind)]
        inside = ", ".join(f".{name}" for name in names[:6]) + (", …" if names[6:] else "")
        return isinstance(value, dict) or Path(
            text
        ).is_file(), f"a mapping of its options ({inside})"
    if kind is Path:
        is_path = isinstance(value, str | Path) and text not in ("null", "") and "\0" not in text
        return is_path, "a path"
    if _hints(kind) is not None or _value_type(kind) is not None:
        return isinstance(value, dict | str), "a mapping of names to values"  # a text may hold one
    return True, ""
