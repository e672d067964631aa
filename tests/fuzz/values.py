"""Mutations of plain data."""

import json
import random
from typing import Any

_BITS = (8, 16, 31, 32, 53, 63, 64)
NUMBERS: list[Any] = [
    *(0, -1, 1, 2, *(2**n for n in _BITS), *(2**n - 1 for n in _BITS), -(2**63), 10**30, 10**400),
    *(0.5, -0.0, 1e-320, 1e308, float("inf"), float("-inf"), float("nan")),
]
NAMES = [
    *(".", "..", "../x", "/etc/passwd", "/dev/zero", "a/b", "~", "-", "--help", "pipe:echo", "*"),
    *("http://127.0.0.1:9/x", "hf://a/b", "[a", "%s", "{}", "{caption}", "null", "NaN", "1e309"),
    *("", "a\0b", "x" * 300, "\ud800", "\u202eabc", "é\u0301", "\ufeff", "\u2028", "a\nb", "a b"),
]


def mutated_value(content: Any, draw: random.Random) -> Any:
    """Plain data, changed at one place of it."""
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        if isinstance(value, dict | list):
            keys = list(value) if isinstance(value, dict) else range(min(len(value), 50))
            for key in keys:
                places.append((value, key))
                walk(value[key])

    walk(content)
    if not places or draw.random() < 0.03:
        return draw.choice([None, [], {}, 7, "x", [content], [[[]]]])
    inside, key = draw.choice(places)
    other_inside, other_key = draw.choice(places)
    match draw.randrange(12):
        case 0:
            del inside[key]
        case 1 | 2:
            inside[key] = draw.choice(NUMBERS)
        case 3 | 4:
            inside[key] = draw.choice(NAMES)
        case 5:
            inside[key] = draw.choice([None, True, False, [], {}, [None], {"": None}, [[]], "x"])
        case 6:
            for _ in range(draw.choice([1, 20, 100, 900])):
                inside[key] = draw.choice([[inside[key]], {"a": inside[key]}])
        case 7:
            inside[key] = draw.choice(["x" * 10**6, [0] * 10**5, "\0" * 1000, "é" * 10**5])
        case 8:
            kept = other_inside[other_key]
            inside[key] = json.loads(json.dumps(kept)) if isinstance(kept, dict | list) else kept
        case 9 if isinstance(inside, dict):
            inside[draw.choice(NAMES)] = inside.pop(key)
        case 9 | 10:
            value = inside[key]
            turned = {str: list, int: str, float: str, list: str, dict: list, bool: int}
            inside[key] = turned.get(type(value), str)(value)
        case _ if isinstance(inside, list):
            inside.insert(key, inside[key])
        case _:
            value = inside[key]
            inside[key] = -value if isinstance(value, int | float) else [value, value]
    return content
