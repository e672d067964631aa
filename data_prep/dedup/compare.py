"""How much two pictures differ once one is laid over the other, from their small views.

The tangent distance (P. Simard et al., "Efficient Pattern Recognition Using a New Transformation
Distance", 1993): one picture is moved, stretched and brightened to fit the other by least squares
over the derivatives, and what remains is looked at place by place. So a re-encoded, cropped or
brightened copy differs little anywhere, while another drawing on the same paper differs much
somewhere.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from data_prep.dedup.hashes import GREY_PX, Views

_BLUR_PX = 0.7  # a sharp edge has no derivative to go by
_WHITE = 250  # brighter is cut off where a copy is brightened
_WHITE_WEIGHT = 0.02
_GAINS = (0.8, 1.25)  # in which a copy may be darker or brighter
_BLOCK = 4096  # pairs at once
_Floats = NDArray[np.float32]
_ACROSS = np.linspace(-1, 1, GREY_PX, dtype=np.float32)


def differences(left: Views, right: Views) -> _Floats:
    """(B,) largest difference at a place, in levels of 255, of (B, VIEW_BYTES) and as many."""
    found = np.empty(len(left), np.float32)
    for at in range(0, len(left), _BLOCK):
        one, other = (_planes(views[at : at + _BLOCK]) for views in (left, right))
        found[at : at + _BLOCK] = np.minimum(_fitted(*one, *other), _fitted(*other, *one))
    return found


def _planes(views: Views) -> tuple[_Floats, _Floats]:
    """(B, 16, 16) blurred brightness and (B, 128) colours about grey."""
    grey = views[:, : GREY_PX**2].reshape(-1, GREY_PX, GREY_PX).astype(np.float32)
    colour = views[:, GREY_PX**2 :].astype(np.float32) - 128
    return gaussian_filter(grey, (0, _BLUR_PX, _BLUR_PX), mode="nearest"), colour


def _fitted(grey: _Floats, colour: _Floats, to_grey: _Floats, to_colour: _Floats) -> _Floats:
    """(B,) what remains at most where the first pictures are fitted to the second."""
    down, across = np.gradient(grey, axis=1), np.gradient(grey, axis=2)
    changes = [grey, np.ones_like(grey), down, across, down * _ACROSS[:, None], across * _ACROSS]
    basis = np.stack([change.reshape(len(grey), -1) for change in changes], axis=2)
    dark = (grey < _WHITE) & (to_grey < _WHITE)
    weighted = basis * np.where(dark, 1, _WHITE_WEIGHT).astype(np.float32).reshape(
        *basis.shape[:2], 1
    )
    normal = weighted.transpose(0, 2, 1) @ basis
    ridge = 1e-3 * np.einsum("bii->bi", normal) + 0.1  # nothing moves where nothing shows it
    normal += np.eye(len(changes), dtype=np.float32) * ridge[:, None, :]
    wanted = weighted.transpose(0, 2, 1) @ to_grey.reshape(len(grey), -1, 1)
    amounts = np.linalg.solve(normal, wanted)
    amounts[:, 0] = np.clip(amounts[:, 0], *_GAINS)
    fitted = np.clip((basis @ amounts)[:, :, 0], 0, 255)
    of_grey = np.abs(fitted - to_grey.reshape(len(grey), -1)).max(axis=1)
    of_colour = np.abs(colour * amounts[:, 0] - to_colour).max(axis=1)
    return np.asarray(np.maximum(of_grey, of_colour))
