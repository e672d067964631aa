"""What is judged after a training joins its evaluation.json, and the report draws it."""

import shutil
from pathlib import Path

from commands import evaluate, export
from judged import looked_up, points_of
from report_run import report

from pretrain.evaluation.kept import write_training


def recall(point: dict, name: str) -> float:
    return looked_up(point["figures"], "retrieval")[name]["image_to_text"]["r@1"]


def test_a_later_evaluation_joins_the_runs_and_is_drawn(
    tiny_run, tiny_dataset, tiny_evaluation_set, tmp_path, capsys
):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    trained = points_of(run / "evaluation.json")
    later = {"model": run, "sets": {"seen": tiny_dataset}}
    evaluate(**later, out=tmp_path / "out.json")
    assert points_of(run / "evaluation.json") == trained  # --out writes elsewhere alone
    [elsewhere] = points_of(tmp_path / "out.json")
    for _ in range(2):  # the same twice is there once
        evaluate(**later)
        *before, joined = points_of(run / "evaluation.json")
        assert before == trained, "training's own points changed"
        assert (joined["after"], joined["tokens"]) == ("full", "full")
        assert joined["figures"] == elsewhere["figures"]
    evaluate(run_dir=run)  # the run's own sets again: training has these figures
    assert len(points_of(run / "evaluation.json")) == len(trained) + 1
    evaluate(**later, stage="reduced", image_px=48)
    export(run_dir=run, format="native")
    evaluate(model=run / "export", sets={"held_out": tiny_evaluation_set})
    places = [(one["after"], one["tokens"]) for one in points_of(run / "evaluation.json")]
    assert places[len(trained) :] == [("full", "full"), ("reduced", "other"), ("export", "export")]

    _, page = report(run)
    [table] = [rows for rows in page.tables if f"{100 * recall(joined, 'seen'):.1f}" in rows[2]]
    assert [row[0].split(" tokens")[0].strip() for row in table[2:]][:2] == [
        "after full, at full", "after reduced, at other",
    ]  # fmt: skip
    assert "kept in" in capsys.readouterr().out

    write_training(run, trained[:2])  # a resumed training writes its own anew
    assert [one.get("by") for one in points_of(run / "evaluation.json")] == [
        *(None, None), *["pretrain.evaluate"] * 3,
    ]  # fmt: skip


def test_a_folder_that_takes_nothing_is_a_note(tiny_run, tmp_path: Path, capsys):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    (run / "evaluation.json").unlink()
    (run / "evaluation.json").mkdir()
    evaluate(run_dir=run)
    assert "note: not kept in" in (told := capsys.readouterr().out) and "R@1" in told
