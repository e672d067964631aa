"""How long a checkpoint holds up the steps, and how long it is written behind them.

    python -m benchmarks.checkpoint_stall

Two models on one CPU rank: the demo's, and one of about 300 M parameters with AdamW. Each makes a
step, so that its moments are there, then three saves. The rows go to results/checkpoint_stall.json.
"""

import argparse
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import this_machine
from pretrain.base import distributed
from pretrain.base.distributed import Runtime
from pretrain.base.files import write_durably
from pretrain.base.run_files import METRICS_FILE
from pretrain.engine.engine import Engine
from pretrain.engine.options import EngineOptions, OptimizerOptions
from pretrain.losses.build import build_objective
from pretrain.losses.options import LossOptions
from pretrain.models.clip import CLIP
from pretrain.models.options import ImageTowerOptions, ModelOptions, TextTowerOptions
from pretrain.recipe.parsing import parse
from pretrain.recipe.run_options import CheckpointOptions
from pretrain.run.metrics import RunLog
from pretrain.run.record import RunState
from pretrain.run.saver import Saver
from pretrain.tokens.vocabulary import Vocabulary

RESULTS = Path(__file__).parent / "results/checkpoint_stall.json"
SAVES, IMAGE_PX, TEXT_TOKENS, VOCAB_SIZE = 3, 64, 16, 2048


@dataclass(frozen=True, kw_only=True)
class Row:
    """The saves of one model; seconds of each, in order."""

    model: str
    optimizer: str
    parameters: int
    bytes_per_parameter: float
    wait_s: list[float]  # what a step waited: the copy to host memory
    write_s: list[float]  # behind the steps: file, fsync, sha256, state.json
    copy_gb_per_s: float  # of the median save


def large() -> ModelOptions:
    """L/16's image tower without its last two blocks, and a small text tower: 300 M parameters."""
    return ModelOptions(
        embed_dim=768,
        image=ImageTowerOptions(width=1024, depth=22, heads=16, patch_px=16),
        text=TextTowerOptions(width=512, depth=6, heads=8),
    )


def measured(
    name: str, model: ModelOptions, optimizer: OptimizerOptions, runtime: Runtime, folder: Path
) -> Row:
    """One step and some saves of a model in an empty folder."""
    torch.manual_seed(0)
    clip = CLIP(
        model,
        vocabulary=Vocabulary(size=VOCAB_SIZE, pad_id=0, bos_id=1, eos_id=2),
        image_px=IMAGE_PX,
        text_tokens=TEXT_TOKENS,
        explicit_attention=True,
    )
    parameters = sum(p.numel() for p in clip.parameters())
    engine = Engine(
        model=clip,
        objective=build_objective(LossOptions()),
        runtime=runtime,
        options=EngineOptions(),
        optimizer=optimizer,
        precision="fp32",
        local_batch_samples=2,
        micro_batch_samples=None,
    )
    images = torch.randn(2, 3, IMAGE_PX, IMAGE_PX)
    texts = torch.randint(1, VOCAB_SIZE, (2, TEXT_TOKENS))
    engine.step(images, texts, None, learning_rate=1e-4, objective_learning_rate=1e-4)
    log = RunLog(folder, is_main=True, samples=0, samples_seen=0)
    saver = Saver(folder / "checkpoints", CheckpointOptions(keep=1), runtime, log)
    for step in range(1, SAVES + 1):
        saver.save(engine, RunState(step=step), {})
        saver.finish()
    log.close()
    engine.close()
    events = [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]
    wait_s = [event["wait_s"] for event in events if event["event"] == "checkpoint"]
    written = [event for event in events if event["event"] == "checkpoint_written"]
    size = written[-1]["bytes"]
    return Row(
        model=name,
        optimizer=optimizer.kind,
        parameters=parameters,
        bytes_per_parameter=size / parameters,
        wait_s=wait_s,
        write_s=[event["write_s"] for event in written],
        copy_gb_per_s=size / sorted(wait_s)[len(wait_s) // 2] / 1e9,
    )


def main() -> None:
    """Measure both models and write the rows."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--folder", type=Path, help="where the checkpoints are written")
    chosen = options.parse_args()
    runtime = distributed.start()
    demo, _ = parse(["--config", "pretrain/recipes/demo.yaml"])
    rows: list[dict[str, Any]] = []
    for name, model, optimizer in (
        ("demo", demo.model, demo.optimizer),
        ("300 M", large(), OptimizerOptions(kind="adamw")),
    ):
        with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
            rows.append(asdict(measured(name, model, optimizer, runtime, Path(folder))))
        print(json.dumps(rows[-1]), flush=True)
    result = {
        "machine": this_machine(ranks=1),
        "load_average": os.getloadavg()[0],
        "date": date.today().isoformat(),
        "rows": rows,
    }
    write_durably(RESULTS, json.dumps(result, indent=2) + "\n")
    distributed.stop()


if __name__ == "__main__":
    main()
