"""Near-identical drawings: found by pixels and by structure, and kept on one side of a split."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import TypeVar

import numpy as np
import numpy.typing as npt

RMSE_THRESHOLD = 8.0
"""Two drawings are near-identical below this RMSE (0-255 scale, 32 px RGB on white)."""
LOOSE_RMSE_THRESHOLD = 12.0
"""... or below this RMSE when their structure agrees too."""
HASH_BITS_THRESHOLD = 4
"""Structure agrees when two 256-bit difference hashes differ in at most this many bits."""
FEATURE_PX = 32
HASH_PX = 16
COARSE_PX = 8
BLOCK_ROWS = 1024

Node = TypeVar("Node", bound=Hashable)


def features(pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return 32 px RGB pictures as rows [n, 3072] on the 0-255 scale, by averaging blocks."""
    n, side = pictures.shape[:2]
    step = side // FEATURE_PX
    blocks = pictures.reshape(n, FEATURE_PX, step, FEATURE_PX, step, 3)
    return blocks.mean(axis=(2, 4), dtype=np.float32).reshape(n, -1)


def difference_hashes(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Return difference hashes as rows [n, 256]: is a cell brighter than its right neighbour?

    Cells are 2x2 averages of the grey picture; the right-most compares with the left-most. The
    margin of one grey level keeps flat areas from voting by noise.
    """
    n = len(rows)
    step = FEATURE_PX // HASH_PX
    cells = rows.reshape(n, HASH_PX, step, HASH_PX, step, 3).mean(axis=(2, 4, 5))
    return (cells > np.roll(cells, -1, axis=2) + 1.0).reshape(n, -1)


def near_pairs(
    left: npt.NDArray[np.float32], right: npt.NDArray[np.float32]
) -> Iterator[tuple[int, int, float]]:
    """Yield (row of left, row of right, RMSE) for every near-identical pair, none missed.

    Both arguments are `features`. Averaging blocks cannot raise an RMSE, so pairs that are far
    apart at 8 px are passed over; the rest are compared at full size, where the sums are exact
    and do not depend on the other rows given.
    """
    coarse_left, coarse_right = coarsen(left), coarsen(right)
    left_hash, right_hash = difference_hashes(left), difference_hashes(right)
    right_square = np.einsum("ij,ij->i", coarse_right, coarse_right)
    limit = LOOSE_RMSE_THRESHOLD**2 * coarse_left.shape[1] * (1 + 1e-6)
    for start in range(0, len(left), BLOCK_ROWS):
        rows = coarse_left[start : start + BLOCK_ROWS]
        row_square = np.einsum("ij,ij->i", rows, rows)[:, None]
        candidates = np.argwhere(row_square + right_square - 2 * rows @ coarse_right.T < limit)
        candidates[:, 0] += start
        for i, j in candidates:
            rmse = float(np.sqrt(np.mean(np.square(left[i] - right[j]), dtype=np.float64)))
            if rmse < LOOSE_RMSE_THRESHOLD:
                bits = np.count_nonzero(left_hash[i] != right_hash[j])
                if rmse < RMSE_THRESHOLD or bits <= HASH_BITS_THRESHOLD:
                    yield int(i), int(j), rmse


def coarsen(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return `features` averaged down to 8 px, as rows [n, 192]."""
    step = FEATURE_PX // COARSE_PX
    blocks = rows.reshape(len(rows), COARSE_PX, step, COARSE_PX, step, 3)
    return blocks.mean(axis=(2, 4), dtype=np.float64).reshape(len(rows), -1)


def connected(pairs: Iterable[tuple[Node, Node]]) -> list[set[Node]]:
    """Return the groups that pairs chain together (union-find), each with two members or more."""
    parent: dict[Node, Node] = {}

    def root(node: Node) -> Node:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for left, right in pairs:
        parent[root(left)] = root(right)
    groups: dict[Node, set[Node]] = {}
    for node in list(parent):
        groups.setdefault(root(node), set()).add(node)
    return [group for group in groups.values() if len(group) > 1]
