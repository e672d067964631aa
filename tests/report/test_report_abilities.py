"""The page's ability bars are the figures of evaluation.json, with chance as a line."""

import json
import re
from pathlib import Path

from judged import looked_up
from report_run import ABILITIES, report, write_run

from pretrain.report import figures


def test_every_bar_and_chance_line_says_its_figure(tmp_path: Path) -> None:
    evaluation = write_run(tmp_path / "run")
    source, page = report(tmp_path / "run")
    tips = set(re.findall(r"<title>([^<]*)</title>", source))
    names = {("reduced", "reduced"): "after reduced", ("full", "full"): "after full",
             ("reduced", "full"): "after reduced, at full tokens"}  # fmt: skip
    assert len(evaluation["points"]) == len(names)
    for stage in evaluation["points"]:
        for ability, one in looked_up(stage["figures"], "abilities")[""].items():
            low, high = map(figures.percent, one["top1_ci95"])
            bar = names[stage["after"], stage["tokens"]]
            assert (
                f"{ability}, {bar}: {figures.percent(one['top1'])}, 95 % interval {low} to {high}"
                in tips
            )
    for ability, chance in ABILITIES.items():
        assert f"{ability}, chance: {figures.percent(chance)}" in tips
    assert "same tokens" not in page.text


def test_questions_that_cannot_be_answered_are_told(tmp_path: Path) -> None:
    evaluation = write_run(tmp_path / "run")
    for figure in evaluation["points"][0]["figures"]:
        if figure["part"] == "digits":
            figure["indistinct"] = 0.375
    (tmp_path / "run/evaluation.json").write_text(json.dumps(evaluation))
    _, page = report(tmp_path / "run")
    assert "after reduced: digits 37.5 %" in page.text


def test_a_run_that_judged_none_has_no_such_section(tmp_path: Path) -> None:
    evaluation = write_run(tmp_path / "run")
    for stage in evaluation["points"]:
        stage["figures"] = [one for one in stage["figures"] if one["task"] != "abilities"]
    (tmp_path / "run/evaluation.json").write_text(json.dumps(evaluation))
    source, _ = report(tmp_path / "run")
    assert "<h2>Abilities</h2>" not in source
