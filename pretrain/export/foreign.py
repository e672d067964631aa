"""A foreign folder's JSON files: read as data, and refused where one names code to run."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# What makes a library run code of the folder, or of a repository that the folder names.
_CODE = ("auto_map", "trust_remote_code")
_ATTENTION = ("attn_implementation", "_attn_implementation")  # a name with "/" is a hub's kernel
_REMEDY = "get the whole model again"
# Sizes in open_clip's and transformers' configs, and the most that is no mistake: larger ones
# would take hours or all memory before anything is compared.
_MOST = {
    **dict.fromkeys(("layers", "num_hidden_layers"), 1000),
    **dict.fromkeys(("heads", "num_attention_heads", "head_width"), 10_000),
    **dict.fromkeys(("width", "hidden_size", "intermediate_size"), 1_000_000),
    **dict.fromkeys(("embed_dim", "projection_dim", "projection_size"), 1_000_000),
    **dict.fromkeys(("patch_size", "image_size", "num_channels"), 100_000),
    **dict.fromkeys(("context_length", "max_position_embeddings"), 1_000_000),
    "vocab_size": 100_000_000,
}


def refuse_code(folder: Path) -> None:
    """ValueError where a JSON file of the folder, at any depth, is damaged or names code to run.

    Call it before a library reads the folder.
    """
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() == ".json" and path.is_file():
            _read(path)


def read_config(path: Path, *sections: str) -> dict[str, Any]:
    """The object in a JSON file, of which each section (`a.b`) is an object too.

    ValueError on one line, with the file's name, for anything else, for a size that is none, and
    where it names code to run.
    """
    content = _read(path)
    for section in ("", *sections):
        found, at = content, section or "its content"
        for name in filter(None, section.split(".")):
            found = found.get(name) if isinstance(found, dict) else None
        if not isinstance(found, dict):
            raise ValueError(f"{path}: {at} is {found!r:.80}, not a JSON object; {_REMEDY}")
    _check_sizes(content, path)
    return content


@contextmanager
def one_line_of_library(path: Path, *names: Path) -> Iterator[None]:
    """A fault inside, of any kind, as a ValueError on one line that names the file.

    Libraries raise all kinds on a folder that is not what they wrote. A ValueError or OSError of
    one line that names one of `names` stays as it is.
    """
    try:
        yield
    except Exception as error:
        told, known = str(error), isinstance(error, ValueError | OSError)
        if isinstance(error, OSError) and error.errno is not None:  # a disk's, with its path
            raise
        if known and "\n" not in told and any(str(name) in told for name in names):
            raise
        reason = f"{type(error).__name__}: {' '.join(told.split())[:300]}"
        raise ValueError(f"{path} and the files beside it cannot be converted ({reason}); "
                         "check the folder, or get the whole model again") from error  # fmt: skip


def _read(path: Path) -> Any:
    code: list[str] = []

    def look(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # Sees a key that is given twice too.
        for name, value in pairs:
            kernel = name in _ATTENTION and isinstance(value, str) and "/" in value
            if name in _CODE or kernel:
                code.append(f"{name}={value!r:.80}")
        return dict(pairs)

    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=look)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ValueError(f"{path} is not readable JSON ({reason}); {_REMEDY}") from error
    if code:
        raise ValueError(
            f"{path} has {code[0]}, which would run code that the folder names: no code of a "
            "foreign model is run; give a model of a class that the library itself has"
        )
    return content


def _check_sizes(content: Any, path: Path) -> None:
    rest = [("", content)]
    while rest:
        section, found = rest.pop()
        for name, value in found.items():
            at = f"{section}.{name}" if section else name
            if isinstance(value, dict):
                rest.append((at, value))
            if name not in _MOST:
                continue
            sides = value if isinstance(value, list) and value else [value]
            if not all(type(side) is int and 1 <= side <= _MOST[name] for side in sides):
                raise ValueError(
                    f"{path}: {at}={value!r:.80} is not a whole number from 1 to {_MOST[name]}; "
                    f"{_REMEDY}"
                )
