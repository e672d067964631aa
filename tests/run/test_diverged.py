"""A stage that ends on skipped updates is no success."""

from forked_runs import train


def test_a_stage_that_ends_on_skipped_updates_is_refused_until_that_is_allowed(
    tiny_dataset, tmp_path
):
    run_dir = tmp_path / "run"
    wild = (
        *("--stages.reduced.base_learning_rate", "1e37", "--stages.reduced.warmup_steps", "0"),
        *("--stages.reduced.steps", "4", "--stages.full.steps", "1"),
        *("--stages.full.warmup_steps", "0"),
    )
    ended = train(run_dir, tiny_dataset, *wild)
    assert ended.code == 1, ended.output
    (error,) = [line for line in ended.output.splitlines() if line.startswith("error:")]
    for part in (
        "stage reduced ends on",
        "stages.reduced.base_learning_rate",
        "max_skipped_at_end=0",
    ):
        assert part in error, error
    assert not (run_dir / "stages/reduced.safetensors").exists()
    assert "finished" not in ended.output
    assert (run_dir / "checkpoints/step-00000004/state.json").exists()  # what it has is kept
    ended = train(run_dir, tiny_dataset, *wild, "--engine.max_skipped_at_end", "9")
    assert (run_dir / "stages/reduced.safetensors").exists()
