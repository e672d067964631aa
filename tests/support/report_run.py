"""A plausible run folder for the report's tests, and the report read back."""

import base64
import io
import json
import math
import random
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from PIL import Image

from pretrain.report.command import write_report
from pretrain.report.options import ReportOptions

STAGES = {
    "reduced": {"image_px": 32, "image_tokens": 16, "image_tokens_full": 16, "text_tokens": 8},
    "full": {"image_px": 64, "image_tokens": 64, "image_tokens_full": 64, "text_tokens": 24},
}
ABILITIES = {
    "counting": 0.1,
    "digits": 0.1,
    "words": 0.1,
    "texture": 0.25,
    "position": 0.25,
    "binding": 0.5,
    "size": 0.5,
    "rotation": 0.25,
}  # chance of each
STEPS = {"reduced": 1632, "full": 222}
SETS = {"held_out_artist": (1721, 0.206), "held_out_concepts": (190, 0.211)}
BATCH = 256
FACTS = ("classes", "largest_class")


def set_figures(rng: random.Random, quality: float, name: str) -> dict[str, Any]:
    """One evaluation set's record: figures that rise with quality (0..1)."""
    n, largest = SETS[name]

    def recall() -> dict[str, Any]:
        first = quality * rng.uniform(0.52, 0.6) + 0.002
        record = {"r@1": first, "r@5": min(1, first * 1.45), "r@10": min(1, first * 1.6), "n": n}
        return record | {f"chance_r@{k}": k / n for k in (1, 5, 10)}

    def zero_shot(classes: int, top: float, share: float) -> dict[str, Any]:
        first = top * (0.3 + 0.7 * quality) * rng.uniform(0.97, 1.03)
        shot = {"top1": first, "top5": min(1, first * 1.6), "classes": classes}
        return shot | {"largest_class": share, "n": n}

    return {
        "image_to_text": recall(),
        "text_to_image": recall(),
        "zero_shot": {
            "group": zero_shot(10, 0.58, largest),
            "subgroup": zero_shot(100, 0.41, 0.133),
        },
    }


def abilities(rng: random.Random, quality: float) -> list[dict[str, Any]]:
    found = []
    for name, chance in ABILITIES.items():
        top1 = chance + (1 - chance) * quality * rng.uniform(0.1, 0.9)
        figure = {"task": "abilities", "set": "", "part": name, "name": "top1", "value": top1}
        figure |= {"chance": chance, "interval": [top1 - 0.06, min(1.0, top1 + 0.06)]}
        found.append(figure | {"n": 240, "indistinct": 0.0, "objects": "shapes"})
    return found


def figures_of(sets: dict[str, Any]) -> list[dict[str, Any]]:
    """The records of evaluation sets as figures."""
    found: list[dict[str, Any]] = []

    def add(task: str, name: str, part: str, one: dict[str, Any], chances: dict[str, float]):
        for kind, chance in chances.items():
            figure = {"task": task, "set": name, "part": part, "name": kind, "value": one[kind]}
            figure |= {"chance": chance, "interval": None, "n": one["n"]}
            found.append(figure | {key: one[key] for key in FACTS if key in one})

    for name, one in sets.items():
        for way in ("image_to_text", "text_to_image"):
            chances = {f"r@{k}": one[way][f"chance_r@{k}"] for k in (1, 5, 10)}
            add("retrieval", name, way, one[way], chances)
        for column, shot in one["zero_shot"].items():
            chances = {f"top{k}": k / shot["classes"] for k in (1, 5)}
            add("zero-shot", name, column, shot, chances)
    return found


def all_sets(rng: random.Random, quality: float) -> dict[str, Any]:
    return {
        name: set_figures(rng, quality * (1 if name == "held_out_artist" else 0.33), name)
        for name in SETS
    }


def write_run(
    folder: Path,
    stages: tuple[str, ...] = ("reduced", "full"),
    seed: int = 0,
    *,
    is_sparse: bool = False,
    recipe: str = "seed: 0\nstages:\n- name: reduced\n",
) -> dict[str, Any]:
    """Write a plausible finished run, resumed once in its first stage; return its evaluation.

    is_sparse: without the numbers that not every machine or recipe gives.
    """
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    time, step, samples = 1_795_000_000.0, 0, 0
    start = {"event": "start", "commit": "1a2b3c4", "world_size": 2, "device": "cpu"}
    start |= {"precision": "bf16", "zero_stage": 1, "versions": {"torch": "2.13.0+cpu"}}
    start |= {"parameters": {"image": 840_000, "text": 920_000}}
    events: list[dict[str, Any]] = []
    for stage in stages:
        events.append(start | {"time": time, "samples_seen": samples})
        tokens = STAGES[stage]
        announced = {"event": "stage", "stage": stage, "samples_seen": samples, "step": step}
        events.append(announced | tokens | {"global_batch_samples": BATCH, "steps": STEPS[stage]})
        speed, first, resumed = (2198, step, False) if stage == "reduced" else (709, step, False)
        while step < first + STEPS[stage]:
            advance = min(10, first + STEPS[stage] - step)
            step, samples = step + advance, samples + advance * BATCH
            time += advance * BATCH / speed
            done = (step - first) / STEPS[stage]
            loss = 0.35 + 5.2 * math.exp(-samples / 90_000) * rng.uniform(0.93, 1.07)
            fast = speed * rng.uniform(0.93, 1.04)
            record = {"event": "step", "stage": stage, "step": step, "samples_seen": samples}
            record |= {"loss": loss, "image_to_text_accuracy": math.exp(-loss)}
            record |= {"text_to_image_accuracy": math.exp(-loss * 0.96)}
            record |= {"learning_rate": 8e-3 * (0.5 + 0.5 * math.cos(math.pi * done))}
            record |= {"logit_scale": 14.3 + min(70.0, samples / 7000), "images_per_s": fast}
            record |= {"grad_norm": rng.uniform(0.6, 1.9), "step_s": BATCH / fast}
            if not is_sparse:
                record |= more_numbers(record, tokens)
            record |= {
                "data_wait_s": rng.uniform(0, 0.004),
                "samples_replaced": {"crc_mismatch": samples // 100_000},
                "updates_skipped": 2,
                "time": time,
            }
            events.append(record)
            if (step - first) % 200 == 0:
                quality = 1 - math.exp(-samples / 120_000)
                evaluation = {"event": "evaluation", "stage": stage, "tokens": stage, "step": step}
                evaluation |= {
                    "samples_seen": samples,
                    "figures": figures_of(all_sets(rng, quality)),
                }
                events.append(evaluation | {"image_px": tokens["image_px"], "text_tokens": 8})
            if step == 800 and not resumed:
                resumed = True
                events.append({"event": "checkpoint", "step": step, "samples_seen": samples})
                lost = {"step": 805, "samples_seen": samples + 1280, "loss": 99.0, "time": time + 1}
                events.append(record | lost)
                time += 3600
                events.append(start | {"time": time, "samples_seen": samples})
    events.append({"event": "end", "time": time + 2, "samples_seen": samples})
    lines = "".join(json.dumps(event) + "\n" for event in events)
    (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")

    results = []
    for after in stages:
        for at in stages:
            if (after, at) == ("full", "reduced"):
                continue
            quality = 0.96 if after == at else 0.4
            result: dict[str, Any] = {
                "after": after,
                "tokens": at,
                "samples_seen": samples,
            } | STAGES[at]
            judged = abilities(random.Random(f"{after} {at} {seed}"), quality)
            results.append(result | {"figures": figures_of(all_sets(rng, quality)) + judged})
    evaluation = {"points": results}
    (folder / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    write_gallery(folder, rng)
    return evaluation


def more_numbers(step: dict[str, Any], tokens: dict[str, int]) -> dict[str, Any]:
    """Numbers that a sparse run lacks, in keeping with a step's others."""
    per_sample = tokens["image_tokens"] + tokens["text_tokens"]
    tflop_per_s = step["images_per_s"] * per_sample * 5e-6
    return {
        "tokens_per_s": step["images_per_s"] * per_sample,
        "tflop_per_s": tflop_per_s,
        "mfu": tflop_per_s / 0.8,
        "slowest_rank": 1,
        "slowest_rank_ready_s": step["step_s"] * 0.4,
        "median_rank_ready_s": step["step_s"] * 0.36,
        "device_memory_peak_gib": None,
        "host_memory_gib": 1.4 + per_sample / 100,
    }


def write_gallery(folder: Path, rng: random.Random, is_whole: bool = False) -> None:
    """is_whole: with what a run folder holds since texts, confusions and map are stored."""
    names = ["cat face", "red heart", "flag: Chad", "sailboat", "melting face", "hot beverage"]
    images = []
    for i in range(24):
        buffer = io.BytesIO()
        Image.new("RGB", (64, 64), tuple(rng.randrange(256) for _ in "rgb")).save(buffer, "JPEG")
        own, top = names[i % 6], rng.sample(names, 5)
        guesses = [
            {"caption": caption, "score": 0.4 - 0.05 * place, "right": caption == own}
            for place, caption in enumerate(top)
        ]
        encoded = base64.b64encode(buffer.getvalue()).decode()
        shot = {"key": f"{i:016x}", "jpeg_base64": encoded, "caption": own, "top5": guesses}
        images.append(shot)
    thumb = {"key": "ab", "jpeg_base64": encoded, "caption": "sailboat"}
    answers = [{**thumb, "score": 0.4 - 0.05 * i, "right": False} for i in range(5)]
    texts = [{"caption": "sailboat", "rank": 17, "of": 1720, "right": thumb, "top5": answers}]
    pair = {"name": "cat face", "taken_for": "red heart", "count": 7, "of": 9, "example": thumb}
    confused = {"task": "sub_group", "classes": 12, "wrong": 30, "n": 90, "pairs": [pair]}
    gallery = {"set": "held_out_artist", "images": images}
    if is_whole:
        gallery |= {"texts": texts, "confusions": [confused]}
    (folder / "gallery.json").write_text(json.dumps(gallery), encoding="utf-8")


class Page(HTMLParser):
    """The page's tables as lists of cell texts, its text, and every tag with its attributes."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(source)
        self.text = " ".join(self.texts)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._open.append(tag)
        elif tag == "style":
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1] == tag:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open[-1:] == ["style"]:
            return
        if self._open:
            self.tables[-1][-1][-1] += data
        self.texts.append(data.strip())

    def table_with(self, header: str) -> list[list[str]]:
        return next(t for t in self.tables if any(header in cell for row in t for cell in row))


def report(folder: Path) -> tuple[str, Page]:
    source = write_report([], ReportOptions(run_dir=folder)).read_text("utf-8")
    return source, Page(source)


def rates(row: list[str]) -> list[float]:
    """The percentages of a row's cells, after its name, as rates."""
    return [float(cell) / 100 for cell in row[1:] if cell]


def assert_close(shown: list[float], true: list[float]) -> None:
    """Each shown percentage is the true rate to the digits that are shown."""
    assert len(shown) == len(true)
    gaps = [
        abs(a - b) - (0.00051 if b >= 0.01 else 0.051 * b) for a, b in zip(shown, true, strict=True)
    ]
    assert max(gaps) <= 0, f"largest excess {max(gaps)}: {shown} against {true}"
