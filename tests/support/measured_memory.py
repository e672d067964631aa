"""Run as a program: peak memory of a recipe's training step above what stood before the model.

measured_memory.py RECIPE STAGE VOCAB STEPS → one JSON line of bytes. Before the model is built,
all libraries are imported and the process group stands; the peak is the kernel's high-water mark
of resident memory, reset at that moment.
"""

import json
import sys
from pathlib import Path

import torch
from vocabularies import of_size

from pretrain.base import distributed
from pretrain.batches.augment import prepare
from pretrain.engine.engine import Engine
from pretrain.engine.precision import resolve_precision
from pretrain.losses.build import build_objective
from pretrain.models.build import build_model
from pretrain.plan.flops import meta_model
from pretrain.recipe.parsing import parse


def resident(which: str) -> int:
    """VmRSS or VmHWM of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(which + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {which}")


def main(recipe_file: str, stage_name: str, vocab: int, steps: int) -> None:
    recipe, _ = parse(["--config", recipe_file])
    stage = recipe.stages[stage_name]
    runtime = distributed.start()
    meta_model(recipe.model, stage.tokens, vocab)  # imports timm and transformers
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    batch, px = stage.global_batch_samples, stage.tokens.image_px
    engine = Engine(
        model=build_model(
            recipe.model, tokens=stage.tokens, vocabulary=of_size(vocab), device=runtime.device
        ),
        objective=build_objective(recipe.loss),
        runtime=runtime,
        options=recipe.engine,
        optimizer=recipe.optimizer,
        precision=resolve_precision(recipe.engine.precision, runtime.device),
        local_batch_samples=batch,
        micro_batch_samples=stage.micro_batch_samples,
    )
    built = resident("VmRSS")
    for _ in range(steps):
        pictures = torch.randint(0, 256, (batch, px, px, 3), dtype=torch.uint8)
        images = prepare(pictures, None, stage.augment, recipe.data.normalisation, engine.dtype)
        texts = torch.randint(4, vocab, (batch, stage.tokens.text_tokens))
        engine.step(images, texts, None, learning_rate=1e-3, objective_learning_rate=1e-3)
    print(json.dumps({
        "peak": resident("VmHWM") - before, "built": built - before,
        "after": resident("VmRSS") - before,
    }))  # fmt: skip
    distributed.stop()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
