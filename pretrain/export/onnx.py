"""The towers as ONNX files, judged by ONNX Runtime before they get their names."""

import json
import logging
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from pretrain.base.files import rename_durably, sync
from pretrain.export.judge import judge
from pretrain.export.native import ExportedModel

REQUIREMENTS = "requirements-onnx.txt"
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_WEIGHTS_SUFFIX = ".data"
# A protobuf message, which an ONNX file is, ends at 2 GiB: larger weights lie beside it.
_INLINE_BYTES = 3 << 29
_TOLERANCE = 1e-4  # of unit vectors in fp32; fused kernels round otherwise than PyTorch's
# File, input, output: the names that transformers gives them.
_IMAGE = ("image.onnx", "pixel_values", "image_embeds")
_TEXT = ("text.onnx", "input_ids", "text_embeds")
ONNX_FILES = tuple(names[0] + end for names in (_IMAGE, _TEXT) for end in ("", _WEIGHTS_SUFFIX))


class _Images(nn.Module):
    """The image side alone: (B, 3, H, W) → (B, E)."""

    def __init__(self, own: ExportedModel) -> None:
        super().__init__()
        self.clip = own.model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.clip.encode_image(pixel_values)


class _Texts(nn.Module):
    """The text side alone: (B, T) → (B, E)."""

    def __init__(self, own: ExportedModel) -> None:
        super().__init__()
        self.clip = own.model

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.clip.encode_text(input_ids)


def check_onnx() -> None:
    """ValueError unless the packages that write and judge ONNX are here."""
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"--onnx true needs {', '.join(_PACKAGES)}; {', '.join(missing)} not found: "
            f"pip install -r {REQUIREMENTS}, or export with --onnx false"
        )


def write_onnx(
    out: Path,
    own: ExportedModel,
    config: dict[str, Any],
    pictures: list[Image.Image],
    texts: list[str],
) -> float:
    """Write image.onnx and text.onnx, for any batch, fp32; the largest difference of a value of an
    embedding between ONNX Runtime and the model, one sample at a time and all together.

    ValueError where it is 1e-4 or more; then neither file is there. Each file records under
    `clipa`, in its metadata, how its inputs are prepared.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name in ONNX_FILES:  # an earlier model's
        (out / name).unlink(missing_ok=True)
    keys = ("preprocessing", "vocabulary", "text_tokens", "logit_scale", "logit_bias")
    record = {key: config[key] for key in keys if key in config}
    record["specials"] = config["model"]["text"]["specials"]
    parts = (
        ("picture", _IMAGE, _Images(own), own.pixels(pictures)),
        ("text", _TEXT, _Texts(own), own.text_ids(texts)),
    )
    with tempfile.TemporaryDirectory(prefix="onnx.", suffix=".part", dir=out) as aside:
        worst = 0.0
        for kind, names, tower, inputs in parts:
            _write(Path(aside), names, tower.eval(), inputs, json.dumps(record))
            found, expected = _embed(Path(aside) / names[0], tower, inputs)
            difference = judge(
                {kind: found},
                {kind: expected},
                found_of=names[0],
                expected_of="the run's model",
                tolerance=_TOLERANCE,
                remedy="export with --onnx false",
            )
            worst = max(worst, difference)
        for file in sorted(Path(aside).iterdir(), reverse=True):  # weights before who names them
            sync(file)
            rename_durably(file, out / file.name)
    return worst


def _write(
    folder: Path, names: tuple[str, str, str], tower: nn.Module, inputs: Tensor, record: str
) -> None:
    file, given, found = names
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    # The other tower's weights are not part of this one's graph: an upper bound is enough.
    size = sum(each.numel() * each.element_size() for each in tower.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            tower,
            (inputs[:2],),
            input_names=[given],
            output_names=[found],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props["clipa"] = record
    program.save(folder / file, external_data=size > _INLINE_BYTES)


@torch.inference_mode()
def _embed(path: Path, tower: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """What ONNX Runtime and the model give, in batches of 1 and of all, one below the other."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    batches = [inputs[:1], inputs]
    found = [torch.from_numpy(session.run(None, {given.name: b.numpy()})[0]) for b in batches]
    return torch.cat(found), torch.cat([tower(batch) for batch in batches])
