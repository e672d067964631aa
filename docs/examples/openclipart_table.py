"""Openclipart as a table for `data_prep build`: one JSON line a picture, on standard output.

python openclipart_table.py FOLDER > openclipart.jsonl

FOLDER holds `svg` and `png`, the same drawings under the same names. The texts are what each SVG
says of itself in RDF; the pictures are the PNGs, since SVG is not read. A title that many drawings
share is the name of their set or author: it is left out, and so is what a broken export left.
"""

import json
import re
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
DC = "{http://purl.org/dc/elements/1.1/}"
WORK = "{http://web.resource.org/cc/}Work"
JUNK = re.compile(r"hash\b|0x", re.IGNORECASE)  # of a broken export: HASH(0x8a07754)
MOST_SHARED = 5  # drawings with one title, links included


def cleaned(text: str | None) -> str:
    """One line with spaces for underscores; nothing of what is no text."""
    line = " ".join((text or "").replace("_", " ").split())
    return "" if JUNK.match(line) else line


def texts(svg: Path) -> dict[str, object]:
    """Title, description, keywords and author of one file, as far as it has them."""
    work = ET.parse(svg).find(f".//{WORK}")
    if work is None:
        return {}
    keywords = [cleaned(one.text) for one in work.findall(f"{DC}subject/{RDF}Bag/{RDF}li")]
    return {
        "title": cleaned(work.findtext(f"{DC}title")),
        "description": cleaned(work.findtext(f"{DC}description")),
        "keywords": [word for word in keywords if word],
        "author": cleaned(work.findtext(f"{DC}creator/*/{DC}title")),
    }


def main(folder: Path) -> None:
    rows: list[dict[str, object]] = []
    for svg in sorted((folder / "svg").rglob("*.svg")):
        name = svg.relative_to(folder / "svg")
        path = "png" / name.with_suffix(".png")
        rows.append({"path": str(path), "folder": name.parts[0], **texts(svg)})
    shared = Counter(row.get("title") for row in rows)
    for row in rows:
        if shared[row.get("title")] > MOST_SHARED:
            row["title"] = ""
        print(json.dumps(row, ensure_ascii=False))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
