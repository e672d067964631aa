"""Mutations of files that were valid: of bytes, and of what JSON, YAML, tables and tars hold."""

import gzip
import io
import json
import random
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from values import NAMES, NUMBERS, mutated_value

_SPELLED = [str(n).encode() for n in NUMBERS if n != 10**400] + [b"1e309", b"9" * 5000, b"NaN"]
_ENCODED = [name.encode("utf-8", "replace") for name in NAMES]
_TYPES = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, b"Z", b"S", b"g"]
_PAX = ["size", "path", "GNU.sparse.major", "GNU.sparse.map", "hdrcharset", "mtime"]
# What a YAML file may end in; the last grows to millions of values when it is read.
_ENDS = [
    *("? [a, b]\n: 1\n", "!!python/object/apply:os.system ['true']\n", "x: &a [*a]\n", "<<: 7\n"),
    *("a: 2001-01-01\n", "1: 2\n", "data: !!binary x\n", "---\na: 1\n"),
    "\n".join(["a: &a0 [x, x]", *(f"b{n}: &a{n + 1} [{f'*a{n}, ' * 8}]" for n in range(8)), ""])
    + "seed: *a8\n",
]


def mutate_folder(folder: Path, draw: random.Random) -> list[str]:
    """Mutate one to three files below a folder, now and then losing or emptying one; says which."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    told = []
    for path in draw.sample(files, min(len(files), draw.choice([1, 1, 1, 2, 3]))):
        name = str(path.relative_to(folder))
        match draw.randrange(40):
            case 0:
                path.unlink()
            case 1:
                path.write_bytes(b"")
            case 2:
                path.write_bytes(draw.choice([one for one in files if one.is_file()]).read_bytes())
            case 3:
                path.unlink()
                path.mkdir()
            case _:
                path.write_bytes(mutated(name, path.read_bytes(), draw))
        told.append(name)
    return told


def mutated(name: str, content: bytes, draw: random.Random) -> bytes:
    """A file's content, changed as its kind has it, or as bytes."""
    inner = next((how for end, how in _KINDS.items() if name.endswith(end)), None)
    if inner is not None and draw.random() < 0.85:
        try:
            return inner(content, draw)
        except Exception:
            pass  # mutated before, so that it is no longer of its kind
    for _ in range(draw.choice([1, 1, 2, 5])):
        content = _of_bytes(content, draw)
    return content


def _of_bytes(content: bytes, draw: random.Random) -> bytes:
    if not content:
        return draw.randbytes(draw.choice([1, 100]))
    # Most formats begin with what says how to read the rest.
    start = draw.randrange(min(len(content), draw.choice([64, 1024, len(content)])))
    length = draw.choice([1, 2, 4, 8, 64, 512, 4096])
    part, rest = content[start : start + length], content[start + length :]
    match draw.randrange(9):
        case 0:
            flipped = bytes([content[start] ^ 1 << draw.randrange(8)])
            return content[:start] + flipped + content[start + 1 :]
        case 1:
            return content[:start]
        case 2:
            return content[:start] + part * draw.choice([2, 3, 100]) + rest
        case 3:
            return content[:start] + rest
        case 4:
            return content[:start] + bytes(len(part)) + rest
        case 5:
            return content[:start] + draw.randbytes(len(part)) + rest
        case 6:
            number = draw.choice([n for n in NUMBERS if isinstance(n, int) and abs(n) < 2**63])
            packed = struct.pack(draw.choice("<>") + "q", number)[: draw.choice([2, 4, 8])]
            return content[:start] + packed + content[start + len(packed) :]
        case 7:
            digits = [at for at, byte in enumerate(content[:100_000]) if 48 <= byte < 58]
            if not digits:
                return content[:start] + b"\xff\xfe" + rest
            at = draw.choice(digits)
            return content[:at] + draw.choice(_SPELLED) + content[at + 1 :]
        case _:
            other = draw.randrange(len(content))
            return content[:start] + content[other : other + length] + rest


def _json(content: bytes, draw: random.Random) -> bytes:
    value = json.loads(content)
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        value = mutated_value(value, draw)
    text = json.dumps(value, ensure_ascii=draw.random() < 0.5)
    if draw.random() < 0.05 and text.startswith("{"):
        text = '{"format": 1, ' + text[1:]  # a key twice, where there is one
    if draw.random() < 0.03:
        text = draw.choice(["[", '{"a":']) * 100_000
    encoding = draw.choice(["utf-8"] * 12 + ["utf-16", "utf-8-sig", "latin-1"])
    return text.encode(encoding, errors="surrogatepass" if encoding != "latin-1" else "replace")


def _yaml(content: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.1:
        return content + b"\n" + draw.choice(_ENDS).encode()
    value = yaml.safe_load(content)
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        value = mutated_value(value, draw)
    return yaml.dump(value, allow_unicode=draw.random() < 0.5).encode("utf-8", "surrogatepass")


def _lines(content: bytes, draw: random.Random) -> bytes:
    lines = content.split(b"\n")
    at = draw.randrange(len(lines))
    match draw.randrange(4):
        case 0:
            lines.insert(at, draw.choice([lines[at], b"", b"null", b"[]", b'"', b"\xff", b"{}"]))
        case 1:
            lines[at] = draw.choice([b"x" * 10**6, b"\0", *_ENCODED])
        case _:
            change = _json if lines[at][:1] == b"{" else _of_bytes
            lines[at] = change(lines[at], draw)
    return b"\n".join(lines)


def _csv(content: bytes, draw: random.Random) -> bytes:
    rows = [line.split(b",") for line in content.split(b"\n")]
    cells = draw.choice([row for row in rows if row])
    spelled = [*_SPELLED, *_ENCODED, b'"', b'"a,b', b"\xff"]
    match draw.randrange(4):
        case 0:
            cells.insert(draw.randrange(len(cells) + 1), draw.choice(spelled))
        case 1:
            del cells[draw.randrange(len(cells))]
        case _:
            cells[draw.randrange(len(cells))] = draw.choice(spelled)
    return b"\n".join(b",".join(row) for row in rows)


def _parquet(content: bytes, draw: random.Random) -> bytes:
    """Other values or types of a column, in a whole file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(content))
    at = draw.randrange(table.num_columns)
    values = table.column(at).to_pylist()
    kinds: list[Callable[[Any], Any]] = [
        lambda v: None, str, lambda v: [v], lambda v: {"bytes": v, "path": None}, lambda v: {},
        lambda v: str(v).encode(), lambda v: draw.choice(NAMES[:18]), lambda v: [], lambda v: b"",
        lambda v: draw.choice([0, -1, 2**40]), lambda v: draw.choice([0.5, float("nan"), 1e308]),
        lambda v: _of_bytes(v, draw) if isinstance(v, bytes) else v, lambda v: [[v], None],
    ]  # fmt: skip
    change = draw.choice(kinds)
    column = pa.array([change(value) for value in values])
    name = draw.choice([table.column_names[at]] * 4 + [table.column_names[0], "", "a.b", "x" * 300])
    table = table.set_column(at, name, column)
    if draw.random() < 0.1:
        table = draw.choice([table.slice(0, 0), table.select([at]), table.drop_columns([name])])
    kept = io.BytesIO()
    pq.write_table(table, kept)
    return kept.getvalue()


def _tar(content: bytes, draw: random.Random) -> bytes:
    """Other members, or others' names, in a whole tar."""
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar if member.isfile()]  # type: ignore[union-attr]
    at = draw.randrange(len(members))
    member, data = members[at]
    match draw.randrange(7):
        case 0:
            member.name = draw.choice(
                [name for name in NAMES if name.isprintable() and name] + ["a.jpg"]
            )
        case 1 | 2:
            data = mutated(member.name, data, draw)
        case 3:
            member.type = draw.choice(_TYPES)
            member.linkname = draw.choice(["/etc/passwd", "../x", member.name])
        case 4:
            member.pax_headers = {
                draw.choice(_PAX):
                draw.choice(["-1", "0", "x", "99999999999", "1,2,3", "9" * 400])
            }  # fmt: skip
        case 5:
            members.insert(draw.randrange(len(members)), (member, data))
        case _:
            member.name = draw.choice(["a", "b", "x" * 120, "é"]) + draw.choice(
                [".jpg", ".txt", ".json", ".JPG"]
            )
    member.size = len(data)
    members[at] = (member, data)
    kept = io.BytesIO()
    kind = draw.choice([tarfile.PAX_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
    with tarfile.open(fileobj=kept, mode="w", format=kind) as tar:
        for one, data in members:
            tar.addfile(one, io.BytesIO(data))
    return kept.getvalue()


def _gzip(content: bytes, draw: random.Random) -> bytes:
    return gzip.compress(_lines(gzip.decompress(content), draw))


def _safetensors(content: bytes, draw: random.Random) -> bytes:
    """Another header before the same numbers."""
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(mutated_value(json.loads(content[8 : 8 + length]), draw)).encode()
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


_KINDS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": _json, ".jsonl": _lines, ".yaml": _yaml, ".csv": _csv, ".tsv": _csv, ".txt": _lines,
    ".parquet": _parquet, ".tar": _tar, ".gz": _gzip, ".safetensors": _safetensors,
}  # fmt: skip
