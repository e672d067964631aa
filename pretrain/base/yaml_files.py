"""YAML files of options: plain data, each key once, and no larger than a recipe is."""

from pathlib import Path
from typing import Any

import yaml

# Of a recipe; the largest that come along have 2 KB. PyYAML reads some 100 KB a second.
_MOST_BYTES, _MOST_VALUES = 1 << 17, 1 << 16


class _UniqueKeys(yaml.SafeLoader):
    """YAML whose mappings have each key once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # no name of an option: refused by what reads it
            name, line = key.value, key.start_mark.line + 1
            if name in lines and name != "<<":
                raise ValueError(f"the key {name!r} is in line {lines[name]} and again in {line}")
            lines[name] = line
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The options of a YAML file; ValueError or FileNotFoundError where there are none."""
    if not path.is_file():
        raise FileNotFoundError(
            f"--config {path}: there is no such file; pretrain/recipes/ holds those that come along"
        )
    if (size := path.stat().st_size) > _MOST_BYTES:
        raise ValueError(f"{path} has {size:,} bytes, over {_MOST_BYTES:,}: it is not a recipe")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not YAML: it is not UTF-8 text") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}: keep one of them") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no options: see pretrain/recipes/demo.yaml")
    _check_unfolded(content, path)
    return content


def _check_unfolded(content: Any, path: Path) -> None:
    """ValueError where aliases (*name) stand for a value in itself, or for too many values: each
    reader of the options walks through all."""
    waiting, values = [content], 0
    while waiting:
        value, values = waiting.pop(), values + 1
        if values > _MOST_VALUES:
            raise ValueError(
                f"{path}: its aliases (*name) unfold to over {_MOST_VALUES:,} values: write the "
                "values out"
            )
        if isinstance(value, dict | list):
            waiting += value.values() if isinstance(value, dict) else value
