"""An export that is not the run's model leaves nothing behind, and an earlier one as it was."""

import pytest
import torch
from test_convert_refusals import contents

from pretrain.export import command
from pretrain.export.command import export
from pretrain.export.judge import judge
from pretrain.recipe.parsing import read_recipe

NAN, INF = float("nan"), float("inf")


def alike(found, expected, tolerance=1e-4) -> float:
    return judge(found, expected, found_of="FOUND", expected_of="EXPECTED", tolerance=tolerance,
                 remedy="do this")  # fmt: skip


@pytest.mark.parametrize("kind", ["picture", "text"])
@pytest.mark.parametrize("side", ["FOUND", "EXPECTED"])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("tolerance", [1e-4, INF])
def test_what_is_not_finite_is_never_alike(kind, side, value, tolerance):
    sides = {name: {"picture": torch.ones(2, 3), "text": torch.ones(2, 3)}
             for name in ("FOUND", "EXPECTED")}  # fmt: skip
    sides[side][kind][1, 2] = value
    with pytest.raises(ValueError, match=f"^{kind} embeddings of {side} are not finite; do this$"):
        alike(sides["FOUND"], sides["EXPECTED"], tolerance)


def test_both_not_finite_alike_is_not_alike():
    both = {"text": torch.tensor([[INF, 1.0]])}
    with pytest.raises(ValueError, match="not finite"):
        alike(both, both)


def test_near_is_below_the_tolerance():
    expected = {"picture": torch.zeros(2, 3), "text": torch.zeros(2, 3)}
    found = {"picture": torch.full((2, 3), 1e-5), "text": torch.full((2, 3), -3e-5)}
    assert alike(found, expected) == pytest.approx(3e-5)
    for tolerance in (3e-5, 1e-5):
        with pytest.raises(ValueError, match=r"^FOUND gives other .* than EXPECTED: .* 3\.0e-05"):
            alike({"text": found["text"]}, {"text": expected["text"]}, tolerance * 0.999)
    with pytest.raises(ValueError, match=r"shape \(1, 3\)"):  # which would broadcast
        alike({"text": torch.zeros(1, 3)}, {"text": torch.zeros(2, 3)})


@pytest.mark.parametrize("form", ["native", "transformers", "open_clip"])
@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_stage_of_nan_is_refused_and_an_earlier_export_stays(
    form, tower, tiny_run, tmp_path, monkeypatch
):
    recipe, out = read_recipe(tiny_run), tmp_path / "out"
    export(recipe, "full", out, form)
    before = contents(out)
    read = command.read_finished_weights

    def with_nan(*arguments):
        weights, objective = read(*arguments)
        return {n: w * NAN if n.startswith(tower) else w for n, w in weights.items()}, objective

    monkeypatch.setattr(command, "read_finished_weights", with_nan)
    kind = {"image": "picture", "text": "text"}[tower]
    for folder in (out, tmp_path / "new"):
        with pytest.raises(
            ValueError,
            match=f"^{kind} embeddings of .* are not finite|is not finite: the run diverged",
        ) as raised:
            export(recipe, "full", folder, form)
        assert "\n" not in str(raised.value)
    assert contents(out) == before
    assert list(tmp_path.iterdir()) == [out]


def test_what_raises_leaves_no_model_and_names_out(tiny_run, tmp_path, monkeypatch):
    recipe, out = read_recipe(tiny_run), tmp_path / "out"
    fault: BaseException = ValueError()

    def load(folder):
        assert folder != out and (folder / "model.safetensors").is_file()
        raise fault if not isinstance(fault, ValueError) else ValueError(f"{folder} is bad")

    monkeypatch.setattr(command, "load", load)
    with pytest.raises(ValueError, match=f"^{out} is bad$"):
        export(recipe, "full", out)
    fault = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        export(recipe, "full", out)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    monkeypatch.setattr(command, "_TOLERANCE", 0.0)
    with pytest.raises(ValueError, match=f"the export {out} gives other embeddings than"):
        export(recipe, "full", out)
    assert not list(tmp_path.iterdir())
