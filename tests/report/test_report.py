"""The report states the run folder's figures: in its headline, tables, charts and gallery."""

import json
import re
from pathlib import Path

from judged import looked_up
from report_run import BATCH, SETS, assert_close, rates, report, write_run

from pretrain.report import figures
from pretrain.report.run_folder import read_run
from pretrain.report.summary import summarize_stages


def test_result_tables_hold_the_figures_of_the_file(tmp_path: Path) -> None:
    evaluation = write_run(tmp_path / "run")
    _, page = report(tmp_path / "run")
    tables = [t for t in page.tables if "zero-shot" in " ".join(t[0])]
    assert len(tables) == len(SETS)
    for table, name in zip(tables, SETS, strict=True):
        rows = table[2:]
        assert [row[0].split(" (")[0].strip() for row in rows[-2:]] == ["chance", "largest class"]
        for row, stage in zip(rows, evaluation["points"], strict=False):
            one = looked_up(stage["figures"], "retrieval")[name]
            shots = looked_up(stage["figures"], "zero-shot")[name]
            true = [
                one[d][f"r@{k}"] for d in ("image_to_text", "text_to_image") for k in (1, 5, 10)
            ]
            true += [shots[f][t] for f in ("group", "subgroup") for t in ("top1", "top5")]
            assert_close(rates(row), true)
            assert f"after {stage['after']}, at {stage['tokens']} tokens" in row[0]
        n, largest = SETS[name]
        assert_close(rates(rows[-2]), [k / n for k in (1, 5, 10)] * 2 + [0.1, 0.5, 0.01, 0.05])
        assert_close(rates(rows[-1]), [largest, 0.133])


def test_headline_holds_the_final_figures(tmp_path: Path) -> None:
    evaluation = write_run(tmp_path / "run")
    _, page = report(tmp_path / "run")
    head = page.text.split("Stages")[0]
    recalls, shots = (
        looked_up(evaluation["points"][-1]["figures"], task) for task in ("retrieval", "zero-shot")
    )
    for name in SETS:
        for direction in ("image_to_text", "text_to_image"):
            assert f"{100 * recalls[name][direction]['r@1']:.1f} %" in head
        assert f"{100 * shots[name]['group']['top1']:.1f} %" in head
    assert f"{(1632 + 222) * BATCH:,}" in head
    first, last = (stage.images_per_s for stage in summarize_stages(read_run(tmp_path / "run")))
    assert f"reduced is {first / last:.1f}× as fast as full" in head


def test_stage_table_holds_what_was_done(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    _, page = report(tmp_path / "run")
    head, *rows = page.table_with("tokens / sample")
    cells = [dict(zip(head, row, strict=True)) for row in rows]
    assert [c["tokens / sample"] for c in cells] == ["24", "88"]
    assert [c["steps"] for c in cells] == ["1,632", "222"]
    assert [c["samples"] for c in cells] == [f"{1632 * BATCH:,}", f"{222 * BATCH:,}"]
    steps = [step for step in read_run(tmp_path / "run").steps if step["stage"] == "reduced"]
    wait = sum(step["data_wait_s"] for step in steps) / sum(step["step_s"] for step in steps)
    assert cells[0]["data wait"] == f"{100 * wait:.1f} %"
    # 1,632 steps at 2,198 images/s, one more second for the step lost to the kill, no pause.
    assert cells[0]["wall time"] == "3 min 11 s"


def test_every_chart_shows_its_own_quantity(tmp_path: Path) -> None:
    """A chart's legend ends with the last value that the metrics hold of it."""
    write_run(tmp_path / "run")
    source, _ = report(tmp_path / "run")
    run = read_run(tmp_path / "run")
    last = run.steps[-1]
    recalls = looked_up(run.evaluations[-1]["figures"], "retrieval")
    expected = {
        "Loss": [figures.decimal(last["loss"])],
        "In-batch accuracy (training)": [
            figures.percent(last["image_to_text_accuracy"]),
            figures.percent(last["text_to_image_accuracy"]),
        ],
        "Images per second": [f"{last['images_per_s']:,.0f}"],
        "Step time": [f"{1000 * last['step_s']:.3g} ms"],
        "Waiting for data": [figures.percent(last["data_wait_s"] / last["step_s"])],
        "Learning rate": [figures.decimal(last["learning_rate"])],
        "Logit scale": [figures.decimal(last["logit_scale"])],
        "Gradient norm": [figures.decimal(last["grad_norm"])],
        "Tokens per second": [f"{last['tokens_per_s']:,.0f}"],
        "TFLOP per second": [figures.decimal(last["tflop_per_s"])],
        "Share of the peak (MFU)": [figures.percent(last["mfu"])],
        "Time to features, by rank": [
            f"{1000 * last[f'{of}_rank_ready_s']:.3g} ms" for of in ("slowest", "median")
        ],
        "Memory of a rank, GiB": [figures.decimal(last["host_memory_gib"])],
    }
    for name in SETS:
        expected[f"R@1, {name.replace('_', ' ')}"] = [
            figures.percent(recalls[name][direction]["r@1"])
            for direction in ("image_to_text", "text_to_image")
        ]
    for title in ("counting and reading", "arrangement"):  # a bar's figure stands beside it
        expected[f"Abilities: {title}"] = [""]
    legends = {}
    for caption in re.findall(r"<figcaption>(.*?)</figcaption>", source, re.DOTALL):
        title, *values = re.findall(r"<b>(.*?)</b>", caption)
        legends[title] = values
    assert set(expected) == set(legends)
    for title, values in expected.items():
        assert set(values) <= set(legends[title]), (title, values, legends[title])
    assert source.count(f"<title>stage full begins at {1632 * BATCH:,} samples</title>") == 15
    assert source.count(f"<title>resumed at {800 * BATCH:,} samples</title>") == 15
    for event in run.evaluations:
        for name in SETS:
            recall = figures.percent(
                looked_up(event["figures"], "retrieval")[name]["image_to_text"]["r@1"]
            )
            assert f": {recall} at {event['samples_seen']:,} samples</title>" in source


def test_a_resume_takes_back_what_it_repeats(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    run = read_run(tmp_path / "run")
    assert [start["samples_seen"] for start in run.resumes] == [800 * BATCH]
    assert max(step["loss"] for step in run.steps) < 99
    assert [step["step"] for step in run.steps] == sorted({step["step"] for step in run.steps})
    last = run.steps[-1]["samples_seen"] // 100_000
    assert (run.samples_replaced, run.updates_skipped) == ({"crc_mismatch": last}, 2)
    assert sum(stage.samples for stage in summarize_stages(run)) == run.samples_seen


def test_gallery_marks_right_and_wrong(tmp_path: Path) -> None:
    evaluation = write_run(tmp_path / "run")
    images = json.loads((tmp_path / "run" / "gallery.json").read_text())["images"]
    source, page = report(tmp_path / "run")
    right = sum(guess["right"] for image in images for guess in image["top5"])
    assert source.count("✓") == right
    assert source.count("✗") == 24 * 5 - right
    first = sum(image["top5"][0]["right"] for image in images)
    assert f"Right at first place: {first} of 24" in page.text
    figures_then = evaluation["points"][-1]["figures"]
    whole = looked_up(figures_then, "retrieval")["held_out_artist"]["image_to_text"]
    assert (
        f"whole set these are {100 * whole['r@1']:.1f} % and {100 * whole['r@5']:.1f} %"
        in page.text
    )
    pictures = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert pictures == [f"data:image/jpeg;base64,{image['jpeg_base64']}" for image in images]
