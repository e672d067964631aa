"""The concepts (base emoji) of the corpus, and which concept an icon's name means."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Regions that an icon set knows by a name CLDR has left since (old key -> key of today's label).
RENAMED_REGIONS = {
    "macedonia": "northmacedonia",
    "swaziland": "eswatini",
    "turkey": "turkiye",
    "myanmar": "myanmarburma",
    "cocosislands": "cocoskeelingislands",
}
# "flag-for-flag-france", "flag-for-france" and "flag-france" all mean the same region.
FLAG_PREFIX = re.compile(r"^flag-(for-)?(flag-)?")


@dataclass(frozen=True, kw_only=True)
class Concept:
    """One base emoji: its code points, what CLDR calls it and where CLDR files it."""

    code_point: str
    """Fully qualified hex sequence joined by hyphens, e.g. `2764-FE0F`."""
    label: str
    keywords: tuple[str, ...]
    group: str
    subgroup: str


def code_key(code_point: str) -> str:
    """Return the spelling of a hex sequence that every package shares: no FE0F, no leading 0."""
    parts = (part.lstrip("0") for part in code_point.upper().split("-"))
    return "-".join(part for part in parts if part != "FE0F")


def name_key(name: str) -> str:
    """Return a name reduced to ASCII letters and digits, so that spellings can be compared."""
    ascii_name = unicodedata.normalize("NFKD", name.replace("&", "and").replace("*", "asterisk"))
    ascii_name = ascii_name.replace("#", "hash").encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]", "", ascii_name.lower())


def read_concepts(emojibase: Path) -> dict[str, Concept]:
    """Read the base emoji of `emojibase-data` by `code_key`; labels are distinct.

    Left out: skin-tone variants (they live inside their base entry) and the 26 regional
    indicator letters, which belong to no group and are drawn by no artist on their own.
    """
    entries = json.loads((emojibase / "en/data.json").read_text("utf-8"))
    names = json.loads((emojibase / "meta/groups.json").read_text("utf-8"))
    messages = json.loads((emojibase / "en/messages.json").read_text("utf-8"))
    group_names = {row["key"]: row["message"] for row in messages["groups"]}
    concepts: dict[str, Concept] = {}
    for entry in entries:
        if "group" not in entry:
            continue
        label = entry["label"]
        group_slug = names["groups"][str(entry["group"])]
        concepts[code_key(entry["hexcode"])] = Concept(
            code_point=entry["hexcode"],
            label=label,
            keywords=tuple(
                tag for tag in entry.get("tags", ()) if tag.casefold() != label.casefold()
            ),
            group=group_names[group_slug],
            subgroup=names["subgroups"][str(entry["subgroup"])].replace("-", " "),
        )
    check_concepts(concepts.values())
    return concepts


def check_concepts(concepts: Iterable[Concept]) -> None:
    """Raise unless every label names one code point and no keyword holds the separator."""
    by_label: dict[str, list[str]] = defaultdict(list)
    for concept in concepts:
        by_label[concept.label].append(concept.code_point)
        commas = [word for word in concept.keywords if "," in word]
        if commas:
            raise ValueError(
                f"keywords are joined by commas, but {concept.code_point} has {commas}: "
                "choose another separator for the `keywords` column"
            )
    shared = {label: codes for label, codes in by_label.items() if len(codes) > 1}
    if shared:
        raise ValueError(
            f"each caption must name one code point, found {shared}: "
            "check that emojibase-data is the pinned version"
        )


class NameTable:
    """Maps the names that icon sets use to concepts; a name that could mean two maps to none.

    Order of trust: CLDR label, then the names that sets with an exact code-point map give,
    then the Unicode character name. Flags go by the region in the label only: sets merge flags
    that look alike into aliases, and such an alias names the wrong region.
    """

    def __init__(
        self,
        *,
        concepts: Mapping[str, Concept],
        mapped_sets: Iterable[Mapping[str, Any]],
        unicode_names: Mapping[str, str],
    ) -> None:
        self._by_label = {name_key(concept.label): key for key, concept in concepts.items()}
        if len(self._by_label) != len(concepts):
            raise ValueError(
                f"{len(concepts)} labels reduce to {len(self._by_label)} name keys: "
                "teach name_key the characters that tell the colliding labels apart"
            )
        by_icon: dict[str, set[str]] = defaultdict(set)
        for icon_set in mapped_sets:
            for name, keys in mapped_names(icon_set).items():
                by_icon[name_key(name)] |= keys
        self._by_icon = {name: min(keys) for name, keys in by_icon.items() if len(keys) == 1}
        self._by_unicode = {
            name_key(name): code_key(code)
            for code, name in unicode_names.items()
            if code_key(code) in concepts
        }

    def find(self, name: str) -> str | None:
        """Return the `code_key` that an icon's name means, or None."""
        if FLAG_PREFIX.match(name) and name != "flag-in-hole":
            return self.find_flag(FLAG_PREFIX.sub("", name))
        key = name_key(name)
        for table in (self._by_label, self._by_icon, self._by_unicode):
            if key in table:
                return table[key]
        return None

    def find_flag(self, region: str) -> str | None:
        """Return the `code_key` of a region's flag, or None."""
        key = name_key(region)
        return self._by_label.get("flag" + RENAMED_REGIONS.get(key, key))


def mapped_names(icon_set: Mapping[str, Any]) -> dict[str, set[str]]:
    """Return the code keys behind each name of a set that has a `chars` map.

    A mirrored alias is another picture, so it is left out unless the map lists it itself.
    """
    keys: dict[str, set[str]] = defaultdict(set)
    for code, name in icon_set["chars"].items():
        keys[name].add(code_key(code))
    for alias, spec in icon_set.get("aliases", {}).items():
        mirrored = any(spec.get(turn) for turn in ("hFlip", "vFlip", "rotate"))
        if alias not in keys and not mirrored:
            keys[alias] = set(keys.get(spec["parent"], ()))
    return keys
