"""Opens the doors that take other people's files with mutated valid ones, for minutes.

python tests/fuzz/doors.py DOOR --minutes 15 --seed N --out FOLDER

A door promises to accept a file, or to refuse it on one line. What is neither is kept below
FOLDER/findings with its seed and files: a traceback, more than 10 seconds, more than 2 GiB, or the
end of the process. FOLDER/refusals.txt has each kind of refusal once, to be read by a person.
"""

import argparse
import collections
import hashlib
import importlib
import random
import re
import shutil
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/support"), str(ROOT / "tests/export")]

from data_doors import DATA_DOORS  # noqa: E402
from model_doors import MODEL_DOORS  # noqa: E402
from mutate import mutate_folder  # noqa: E402
from trial import Outcome, in_child  # noqa: E402

from pretrain.base import compat  # noqa: E402

DOORS = {**DATA_DOORS, **MODEL_DOORS}


def fuzz(door_name: str, minutes: float, seed: int, out: Path) -> dict[str, int]:
    """How many trials had which outcome."""
    door = DOORS[door_name]
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    compat.make_torchvision_importable()
    for module in door.modules:
        importlib.import_module(module)
    valid, work = out / "valid", out / "work"
    made = in_child(lambda: door.make(valid), out / "make.log", limit_s=120)
    first = opened(door_name, valid, work, random.Random(seed), 0)
    if made.kind != "accepted" or first.kind != "accepted":
        raise SystemExit(
            f"the valid input is not accepted: {made.log[-2000:]}\n{first.log[-2000:]}"
        )
    counts: collections.Counter[str] = collections.Counter()
    refusals: dict[str, str] = {}
    end = time.monotonic() + 60 * minutes
    for number in range(1, 1 << 30):
        if time.monotonic() > end:
            break
        outcome = opened(door_name, valid, work, random.Random(f"{seed}/{number}"), number)
        if outcome.kind == "HANG":  # of this machine's, or the door's?
            outcome = opened(door_name, valid, work, random.Random(f"{seed}/{number}"), number)
        counts[outcome.kind] += 1
        if outcome.kind == "refused":
            refusals.setdefault(re.sub(r"\d+|0x\w+|'[^']*'", "#", outcome.told)[:90], outcome.told)
        elif outcome.kind != "accepted":
            keep(outcome, out, f"{seed}/{number}", work)
        (out / "refusals.txt").write_text("\n".join(sorted(refusals.values())), errors="replace")
    return dict(counts)


def opened(door_name: str, valid: Path, work: Path, draw: random.Random, number: int) -> Outcome:
    """One trial: number 0 changes nothing."""
    door = DOORS[door_name]
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(valid, work)

    def trial() -> int:
        if number:
            print("mutated:", mutate_folder(work, draw), flush=True)
            if draw.random() < 0.7:
                door.seal(work)
        return door.open(work, draw)

    return in_child(trial, work.with_suffix(".log"), limit_s=10)


def keep(outcome: Outcome, out: Path, seed: str, work: Path) -> None:
    """The first of each kind, with all that is needed to see it again."""
    name = f"{outcome.kind}-{hashlib.sha256(outcome.place.encode()).hexdigest()[:8]}"
    folder = out / "findings" / name
    if not folder.exists():
        shutil.copytree(work, folder / "files", symlinks=True)
        (folder / "log").write_text(f"seed {seed}\n{outcome.place}\n{outcome.log[-20_000:]}")
        print(f"{name}: {outcome.place}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("door", choices=[*DOORS, "all"])
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"))
    asked = parser.parse_args()
    found = False
    for name in DOORS if asked.door == "all" else [asked.door]:
        out = (asked.out / name).resolve()
        # In a child, so that no door's libraries stand in another's memory.
        told = in_child(
            lambda name=name, out=out: print(fuzz(name, asked.minutes, asked.seed, out)) or 0,
            asked.out.resolve() / f"{name}.log",
            limit_s=60 * asked.minutes + 300,
            is_bounded=False,
        )
        found |= (out / "findings").exists() or told.kind != "accepted"
        print(f"{name}:", told.log.strip(), flush=True)
    sys.exit(found)


if __name__ == "__main__":
    main()
