"""The abilities' pictures are what their captions say, and the same again; figures are counted."""

from collections import Counter

import numpy as np
import pytest
import torch
from commands import evaluate
from forked_runs import trained
from judged import last_figures, looked_up, points_of
from PIL import Image
from scipy import ndimage
from tiny_datasets import CORPUS
from tiny_models import write_untrained

from pretrain.evaluation.abilities.drawing import COLOURS, SHAPES, SIDE, Canvas
from pretrain.evaluation.abilities.sets import (
    ABILITIES,
    NUMBERS,
    PLACES,
    THINGS,
    TURNS,
    questions,
    things,
)
from pretrain.evaluation.abilities.task import Abilities
from pretrain.evaluation.options import AbilitiesOptions
from pretrain.export.native import load


def blobs(picture: Image.Image) -> tuple[int, np.ndarray]:
    """Number of connected parts that are not white, and their labels."""
    dark = np.asarray(picture.convert("RGB")).min(2) < 200
    labels, count = ndimage.label(dark, np.ones((3, 3)))
    return count, labels


def nearest_colour(pixel: np.ndarray) -> str:
    return min(COLOURS, key=lambda name: np.abs(pixel - COLOURS[name]).sum())


def test_so_many_objects_are_drawn_as_the_caption_says():
    for one in questions("counting", 0, 60, {}):
        count, _ = blobs(one.draw())
        assert one.captions[one.answer].split()[0] == NUMBERS[count - 1]


def parts(picture: Image.Image) -> dict[str, tuple[float, float]]:
    """{colour: (x, y) of the middle of its part}."""
    count, labels = blobs(picture)
    pixels = np.asarray(picture).astype(int)
    found = {}
    for part in range(1, count + 1):
        own = labels == part
        y, x = np.nonzero(own)
        found[nearest_colour(np.median(pixels[own], axis=0))] = (x.mean(), y.mean())
    return found


def test_the_first_object_lies_where_the_caption_says():
    for one in questions("position", 0, 40, {}):
        found = parts(one.draw())
        caption = one.captions[one.answer]
        (where,) = [name for name in PLACES if name in caption]
        first, second = (text.split()[1] for text in caption.split(f" {where} "))
        assert set(found) == {first, second}
        right, down = PLACES[where]
        apart = np.array(found[first]) - np.array(found[second])
        assert apart @ np.array([right, down]) > SIDE / 4, caption
        assert abs(apart @ np.array([down, right])) < SIDE / 20, caption


def overlap(shape: str, box: np.ndarray) -> float:
    """Share in common of a shape drawn alone and of a part cut out, both to one size."""
    canvas = Canvas()
    canvas.shape(shape, "black", (0.5, 0.5), 0.5)
    shown = np.asarray(canvas.finish()).min(2) < 200
    y, x = np.nonzero(shown)
    shown = shown[y.min() : y.max() + 1, x.min() : x.max() + 1]
    a, b = (np.asarray(Image.fromarray(mask).resize((64, 64))) for mask in (shown, box))
    return float((a & b).sum() / (a | b).sum())


def test_the_right_binding_has_the_right_colours_on_the_right_shapes():
    for one in questions("binding", 0, 40, {}):
        picture = one.draw()
        alone = {}
        count, labels = blobs(picture)
        assert count == 2
        pixels = np.asarray(picture).astype(int)
        for part in (1, 2):
            own = labels == part
            y, x = np.nonzero(own)
            box = own[y.min() : y.max() + 1, x.min() : x.max() + 1]
            alone[nearest_colour(np.median(pixels[own], axis=0))] = box
        for phrase in one.captions[one.answer].split(" and "):
            _, colour, shape = phrase.split()
            agree = {name: overlap(name, alone[colour]) for name in SHAPES}
            assert max(agree, key=agree.__getitem__) == shape, f"{phrase}: {agree}"
        assert len(set(one.captions)) == 2


def test_size_rotation_and_texture_are_what_the_captions_say():
    for one in questions("size", 0, 40, things()):
        rows, columns = np.nonzero(np.asarray(one.draw()).min(2) < 240)
        side = max(np.ptp(rows), np.ptp(columns)) / SIDE
        assert (side > 0.4) == ("large" in one.captions[one.answer])
    drawings = things()
    for one in questions("rotation", 0, 40, drawings):
        shown = np.asarray(one.draw())
        if "arrow" in one.captions[0]:
            y, x = np.nonzero(shown.min(2) < 200)
            # Longer than wide, and pointed at one end of its length.
            box = shown.min(2)[y.min() : y.max() + 1, x.min() : x.max() + 1] < 200
            lies = box.shape[1] > box.shape[0]
            ends = [side.sum() for side in ((box[:, :4], box[:, -4:]) if lies else
                                            (box[:4], box[-4:]))]  # fmt: skip
            towards = ("left", "right") if lies else ("up", "down")
            pointing = towards[int(np.argmin(ends))]
            assert one.captions[one.answer].endswith(f"arrow pointing {pointing}")
        else:
            assert one.captions[one.answer].endswith(TURNS[one.answer])
    for one in questions("texture", 0, 40, {}):
        dark = np.asarray(one.draw()).min(2) < 200
        pieces, holes = ndimage.label(dark)[1], ndimage.label(~dark)[1] - 1
        texture = one.captions[one.answer].split()[1]
        assert (pieces == 1 and holes == 0) == (texture == "plain"), (texture, pieces, holes)
        assert (holes > 3 and pieces < 8) == (texture == "dotted"), (texture, pieces, holes)
        rows = np.nonzero(dark.any(1))[0]
        assert (len(rows) < 0.75 * np.ptp(rows)) == (texture == "striped"), texture


def test_answers_are_asked_for_evenly_and_never_told_by_their_place():
    for ability in ABILITIES:
        asked = questions(ability, 0, 240, {})
        counts = Counter(one.answer for one in asked)
        assert len(set(counts.values())) == 1 and len(counts) == len(asked[0].captions), ability
        for one in asked:
            assert len(set(one.captions)) == len(one.captions)


def test_the_same_pixels_again_and_others_by_another_seed():
    assert set(things()) == set(THINGS) and CORPUS.is_file()
    first, again, other = (
        Abilities(AbilitiesOptions(seed=seed, pictures=20)).pixels_sha256() for seed in (0, 0, 1)
    )
    assert first == again
    assert not set(first.values()) & set(other.values())


def test_the_commands_figures_are_counted_again_and_repeat(tiny_dataset, tmp_path, capsys):
    model = write_untrained(tmp_path / "export", tiny_dataset)
    options = AbilitiesOptions(seed=3, pictures=40, batch_samples=16)
    results = []
    for out in ("a.json", "b.json"):
        evaluate(model=model, abilities=options, out=tmp_path / out)
        results.append(last_figures(tmp_path / out))
    assert results[0] == results[1]
    assert "abilities  counting  top-1" in capsys.readouterr().out
    assert {figure["task"] for figure in results[0]} == {"abilities"}
    judged = looked_up(results[0], "abilities")[""]
    assert set(judged) == set(ABILITIES)
    one = load(model)
    for ability, found in judged.items():
        asked = questions(ability, 3, 40, things())
        hits = 0
        for question in asked:
            picture = one.encode_images([question.draw()]).double()
            scores = (picture @ one.encode_texts(list(question.captions)).double().T)[0]
            others = torch.cat([scores[: question.answer], scores[question.answer + 1 :]])
            hits += bool(scores[question.answer] > others.max() + 1e-9)  # a tie is no answer
        gap = abs(found["top1"] - hits / 40)
        assert gap <= 1 / 40, f"{ability}: {gap}"  # a tie within rounding
        assert found["chance_top1"] == pytest.approx(1 / len(asked[0].captions))
        low, high = found["top1_ci95"]
        assert low <= found["top1"] <= high and found["n"] == 40
    # This tokenizer's vocabulary has no digits, so that all captions of digits are one.
    assert {a: f["indistinct"] for a, f in judged.items()}["digits"] == 1
    assert judged["digits"]["top1"] == 0
    assert judged["size"]["indistinct"] == 0


def test_a_recipe_judges_after_each_stage(tiny_dataset, tmp_path):
    """A run without evaluation sets: figures at both stages' lengths, those of the command."""
    run = tmp_path / "run"
    more = ("--evaluation.abilities.pictures", "20", "--log.tensorboard", "false")
    trained(run, tiny_dataset, *more)
    stages = points_of(run / "evaluation.json")
    assert [(one["after"], one["tokens"]) for one in stages] == [
        ("reduced", "reduced"), ("reduced", "full"), ("full", "reduced"), ("full", "full"),
    ]  # fmt: skip
    for one in stages:
        assert set(looked_up(one["figures"], "abilities")[""]) == set(ABILITIES)
    evaluate(model=run, out=tmp_path / "again.json")
    assert last_figures(tmp_path / "again.json") == stages[3]["figures"]
