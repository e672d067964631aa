"""Memory for batches of pictures: a few slots, one a batch, filled again when nobody holds it."""

import mmap
import os
import queue
import weakref

import numpy as np
import torch
from numpy.typing import NDArray


class Slots:
    """`count` batches of uint8 pictures, each of `shape` (B, H, W, 3), and one more, `spare`.

    A page costs memory from the first batch that touches it; pinned pages cost it at once.
    """

    def __init__(self, *, count: int, shape: tuple[int, ...], is_shared: bool, is_pinned: bool):
        """is_shared: `descriptor` is given to processes, who map it; Linux. is_pinned: a GPU copies
        from here while the host goes on."""
        self.spare = count
        self.shape = (count + 1, *shape)
        size = int(np.prod(self.shape))
        self.descriptor = os.memfd_create("batches") if is_shared else -1
        if is_shared:
            os.ftruncate(self.descriptor, size)
        # An array owns the map: CUDA lets go of the pages before they are unmapped.
        self._memory = np.frombuffer(mmap.mmap(self.descriptor, size), np.uint8)
        if is_pinned:  # but the spare, of which copies are handed out
            _pin(self._memory[: size // (count + 1) * count], self._memory)
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(count):
            self._free.put(slot)

    def close_descriptor(self) -> None:
        """No more processes are to map it; whoever has, keeps it."""
        os.close(self.descriptor)

    def take(self) -> int | None:
        """A slot that nobody holds; None where there is none."""
        try:
            return self._free.get_nowait()
        except queue.Empty:
            return None

    def pictures(self, slot: int) -> NDArray[np.uint8]:
        """(B, H, W, 3) of a slot, to be written."""
        batch = int(np.prod(self.shape[1:]))
        content = memoryview(self._memory)[slot * batch : (slot + 1) * batch]  # type: ignore[arg-type]
        return np.frombuffer(content, np.uint8).reshape(self.shape[1:])

    def hand_out(self, slot: int) -> NDArray[np.uint8]:
        """The same to whoever asked for the batch: when no view of it is left, the slot is free."""
        pictures = self.pictures(slot)
        assert isinstance(pictures.base, np.ndarray)  # what all views of it hold
        weakref.finalize(pictures.base, self._free.put, slot)
        return pictures


def _pin(pages: NDArray[np.uint8], owner: NDArray[np.uint8]) -> None:
    """Tell CUDA that these pages stay where they are, as long as their owner is there."""
    runtime = torch.cuda.cudart()
    torch.cuda.check_error(runtime.cudaHostRegister(pages.ctypes.data, pages.nbytes, 0))
    weakref.finalize(owner, runtime.cudaHostUnregister, pages.ctypes.data).atexit = False
