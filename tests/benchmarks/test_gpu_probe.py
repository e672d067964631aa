"""The probe of a GPU's step: rows outlive what goes wrong, and a variant is what its row says."""

import json
import subprocess
import sys
import time

import pytest
from ranks import run_ranks
from tiny_runs import ROOT

STEPS = "ABCDEFGHI"


def probe(out, *options):
    """The rows by step and name, and the table."""
    command = [sys.executable, "-m", "benchmarks.gpu_probe", "--toy", "--out", str(out)]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    return {(row["step"], row["name"]): row for row in rows}, done.stdout


def test_products_and_attention_are_measured_and_judged(tmp_path):
    rows, table = probe(tmp_path / "rows.jsonl", "--steps", "A", "B")
    assert rows["A", "copy"]["gb_per_s"] > 0
    assert min(rows["A", "tiny image up"]["tflops"].values()) > 0
    right = [row for (step, _), row in rows.items() if step == "B" and "both_ms" in row]
    worst = max(max(row["output_apart"], row["gradient_apart"]) for row in right)
    assert len(right) >= 3 and worst < 1e-2, f"{worst} apart from float64"
    absent = rows["B", "16x2 heads of 32, 17 tokens, cudnn"]
    assert "backend" in absent["error"], "a CPU has no cuDNN, and the row has to say so"
    assert "not measured" in table and "tiny image up" in table


@pytest.mark.soak
def test_a_step_that_overruns_keeps_its_rows_and_the_next_goes_on(tmp_path):
    from benchmarks.gpu_probe.rows import OverrunError, Rows, deadline, read

    rows = Rows(tmp_path / "rows.jsonl", "cpu")

    def endless():
        while True:
            try:
                time.sleep(10)
            except Exception:  # as a library might that tries again
                continue

    with pytest.raises(OverrunError), deadline(0.2):
        rows.measure("quick", lambda: {"ms": 1})
        rows.measure("wrong", lambda: {"ms": 1 / 0})
        rows.measure("endless", endless)
    with deadline(10):
        rows.measure("wrong", lambda: {"ms": 2})
    found = {row["name"]: row for row in read(tmp_path / "rows.jsonl")}
    assert list(found) == ["quick", "wrong", "endless"]
    assert found["quick"]["ms"] == 1 and "0 s passed" in found["endless"]["error"]
    assert found["wrong"]["ms"] == 2, "the newest row of a name counts"


@pytest.mark.soak
def test_a_hung_call_ends_the_process_with_its_place(tmp_path):
    code = (
        "import signal; from benchmarks.gpu_probe import rows; rows.GRACE_S = 0.3\n"
        "with rows.deadline(0.2):\n"
        "    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])\n"
        "    signal.sigwait([signal.SIGUSR1])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "line 4 in <module>" in done.stderr, done.stderr


def switches_of_variants(rank):
    from benchmarks.gpu_probe import steps
    from benchmarks.gpu_probe.plan import TOY
    from pretrain.base.distributed import start
    from pretrain.models import attention

    found = {}
    runtime, shape = start(), TOY.shapes["tiny"]
    for count in range(len(steps.MEASURES)):
        with steps.built(shape, runtime, steps.MEASURES[:count]) as engine:
            deepspeed = engine.engine
            seen = {
                steps.TIMERS: not deepspeed.tput_timer.config.enabled,
                steps.TRIMMED: not deepspeed.enable_backward_allreduce
                and deepspeed.optimizer.immediate_grad_update,
                steps.TF32: engine.objective.tf32,
                steps.KERNEL: attention._is_covered.__name__ == "_is_covered",
            }
        found[count] = [name for name, on in seen.items() if on]
    return found, list(steps.MEASURES)


def test_a_variant_has_the_measures_of_its_row_and_no_others():
    found, measures = run_ranks(switches_of_variants, 1)[0]
    for count, on in found.items():
        assert on == measures[:count], f"{count} measures: {on}"


@pytest.mark.soak
def test_every_step_runs_to_its_end(tmp_path):
    rows, table = probe(tmp_path / "rows.jsonl")
    for step in STEPS:
        assert "took_s" in rows[step, "all"], rows[step, "all"]
    errors = [row for (step, _), row in rows.items() if "error" in row and step not in "BG"]
    assert not errors, errors
    losses = [row["losses"] for (step, _), row in rows.items() if step == "C" and "losses" in row]
    worst = max(abs(a - b) for one in losses for a, b in zip(one, losses[0], strict=True))
    assert len(losses) == 6 and worst < 2e-2, f"losses are {worst} apart"
    assert rows["F", "compiled cases alone, eager"]["passed"]
    assert " ms " in (tmp_path / "rows.kernels.txt").read_text() and "goals" in table


def overlap_of_a_rank(rank, folder):
    from benchmarks.gpu_probe import untried
    from benchmarks.gpu_probe.plan import TOY
    from benchmarks.gpu_probe.rows import Rows, read
    from pretrain.base.distributed import start

    rows = Rows(folder / f"{rank}.jsonl", "cpu")
    untried.overlap(TOY, rows, start())
    return read(rows.path)


@pytest.mark.soak
def test_two_ranks_reduce_beside_the_backward_pass_and_the_losses_agree(tmp_path):
    rows = run_ranks(overlap_of_a_rank, 2, tmp_path)[0]
    assert len(rows) == 2 and not any("error" in row for row in rows), rows
    assert all("2 ranks" in row["name"] and row["images_per_s"] > 0 for row in rows)
    assert rows[1]["losses_apart"] < 1e-2, rows[1]["losses_apart"]


@pytest.mark.soak
def test_a_step_without_time_says_so(tmp_path):
    rows, table = probe(tmp_path / "rows.jsonl", "--steps", "C", "--total-s", "0.5")
    assert "not begun" in rows["C", "all"]["error"] and "not begun" in table
