"""What is measured: a GPU's real shapes, or all of it at a size that a CPU ends in seconds."""

from dataclasses import dataclass, replace

from benchmarks.towers import SHAPES, Shape


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Shapes, counts and where the rows go."""

    first: str  # the shape whose measures are added one by one
    shapes: dict[str, Shape]  # that one and the others
    against: tuple[str, ...]  # shapes that open_clip trains too
    losses: tuple[tuple[int, int, int], ...]  # (rows, columns, width)
    small_batches: tuple[int, ...]
    steps: int  # of each variant, whose losses are compared
    warm: int  # of these, not timed
    copy_bytes: int
    backend: str  # of torch.compile
    compiler_cases: dict[str, str]  # order's name: the pattern of its cases
    backends: tuple[str, ...]


GPU = Plan(
    first="b16_112_t16",
    shapes={
        "b16_112_t16": replace(SHAPES["b16_112_t16"], batch=2048),
        **{n: SHAPES[n] for n in ("l16_96_t8", "h14_84_t8", "b16_112_t32", "l16_224_t32")},
    },
    against=("b16_112_t16", "l16_96_t8"),
    losses=((8192, 65536, 512), (1024, 65536, 1024)),
    small_batches=(128, 512),
    steps=20,
    warm=5,
    copy_bytes=2**31,
    backend="inductor",
    # After Muon, autocast and offload, where the fault was found, and as a process's first.
    compiler_cases={
        "last": "ZeRO 1, muon|offload|ZeRO 1, .*autocast|fp32, compile|fp32, recompute, compile",
        "alone": "fp32, (recompute, )?compile",
    },
    backends=("eager", "aot_eager", "inductor"),
)

_TOWER = {"width": 64, "depth": 1, "heads": 2, "mlp_ratio": 4.0}
_TINY = replace(SHAPES["cpu"], image={**_TOWER, "patch_px": 8}, text=_TOWER, batch=16)
TOY = Plan(
    first="tiny",
    shapes={"tiny": _TINY, "tiny_t16": replace(_TINY, text_tokens=16)},
    against=("tiny",),
    losses=((64, 128, 32),),
    small_batches=(8,),
    steps=3,
    warm=1,
    copy_bytes=2**20,
    backend="aot_eager",
    compiler_cases={"alone": "ZeRO 1, adamw, bf16, compile"},
    backends=("eager",),
)
