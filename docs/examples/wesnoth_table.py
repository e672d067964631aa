"""The units of The Battle for Wesnoth as a table for `data_prep build`: one JSON line a picture.

python wesnoth_table.py FOLDER > wesnoth.jsonl

FOLDER holds `units` (a .cfg file each, with a description of several sentences) and
`images/units` (every frame of every animation). A picture belongs to the unit whose own picture's
name its name begins with, the longest if there are several.
"""

import json
import re
import sys
from pathlib import Path

FIELD = re.compile(r'^ +(name|race|level|image|description) *= *_? *("[^"]*|[^"\n]+)', re.MULTILINE)
FEMALE = re.compile(r"\+female(?=-|$)")


def unit(cfg: Path) -> dict[str, str]:
    """The first value of each field, which is the unit's own; attacks and frames come later."""
    found: dict[str, str] = {}
    for name, value in FIELD.findall(cfg.read_text("utf-8")):
        text = value.strip('" ').split("^")[-1]  # "female^Mage": what translators are told
        found.setdefault(name, text)
    return found


def owner(stem: str, units: dict[str, dict[str, str]]) -> dict[str, str] | None:
    """The unit with the longest picture's name that `stem` begins with, whole words only."""
    while stem not in units:
        cut = max(stem.rfind("-"), stem.rfind("+"))
        if cut < 0:
            return None
        stem = stem[:cut]
    return units[stem]


def main(folder: Path) -> None:
    units: dict[str, dict[str, str]] = {}
    for cfg in sorted((folder / "units").rglob("*.cfg")):
        found = unit(cfg)
        if "image" in found and "description" in found:
            units.setdefault(found.pop("image").split(".png")[0], found)
    for picture in sorted((folder / "images/units").rglob("*.png")):
        path = picture.relative_to(folder / "images")
        mine = owner(str(path.with_suffix("")), units)
        if mine is not None:
            gender = "female" if FEMALE.search(picture.stem) else "male or none"
            print(json.dumps({"path": str(path), "gender": gender, **mine}, ensure_ascii=False))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
