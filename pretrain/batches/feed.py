"""A rank's batches on its device: each is copied there while the step before it runs."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from pretrain.batches.collate import Batch


@dataclass(frozen=True, kw_only=True)
class DeviceBatch:
    """One rank's part of a global batch, on its device."""

    images: Tensor  # uint8 (B, H, W, 3)
    text_ids: Tensor  # int64 (B, T)
    keep_index: Tensor | None  # int64 (B, K), None for all patch tokens
    augment: Tensor  # fp32 (B, AUGMENT_DRAWS)
    host: Batch  # what was copied: as long as it lives, its memory is not another batch's


def feed(stream: Iterator[Batch], device: torch.device) -> Iterator[DeviceBatch]:
    """The same batches in the same order on the device.

    On CUDA each is asked for and copied, from pinned memory and on a stream of its own, before the
    one ahead of it is handed out; so the copy runs beside that step, and costs one batch of device
    memory. A batch must be let go only after its step.
    """
    if device.type != "cuda":
        for batch in stream:
            yield _copy(batch, device)
        return
    copies = torch.cuda.Stream(device)
    started: deque[tuple[DeviceBatch, torch.cuda.Event]] = deque()
    for batch in stream:
        with torch.cuda.stream(copies):
            fed = _copy(batch, device)
        started.append((fed, copies.record_event()))
        if len(started) > 1:
            yield _await_copy(*started.popleft(), device)
    while started:
        yield _await_copy(*started.popleft(), device)


def _copy(batch: Batch, device: torch.device) -> DeviceBatch:
    def put(array: Any) -> Tensor:
        tensor = torch.from_numpy(array)
        if device.type == "cuda" and not tensor.is_pinned():
            tensor = tensor.pin_memory()  # the pictures were written into pinned memory
        return tensor.to(device, non_blocking=True)

    kept = batch["keep_index"]
    return DeviceBatch(
        images=put(batch["images"]),
        text_ids=put(batch["text_ids"]),
        keep_index=None if kept is None else put(kept),
        augment=put(batch["augment"]),
        host=batch,
    )


def _await_copy(fed: DeviceBatch, copied: torch.cuda.Event, device: torch.device) -> DeviceBatch:
    """Let the step's stream wait for the copy, and keep the memory until that stream is done."""
    current = torch.cuda.current_stream(device)
    current.wait_event(copied)
    for one in fields(fed):
        if isinstance(tensor := getattr(fed, one.name), Tensor):
            tensor.record_stream(current)
    return fed
