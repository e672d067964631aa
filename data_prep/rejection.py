"""Why a sample is left out of a dataset: named, so that each reason can be counted."""

from typing import Literal, get_args

Reason = Literal[
    "caption_empty",
    "caption_markup",
    "caption_not_utf8",
    "caption_placeholder",
    "caption_too_long",
    "duplicate_key",
    "image_aspect",
    "image_missing",
    "image_outside_root",
    "image_too_large",
    "image_too_small",
    "image_truncated",
    "image_unreadable",
    "metadata_unreadable",
]
REASONS: tuple[Reason, ...] = get_args(Reason)


class RejectedError(Exception):
    """One sample is left out; the run goes on."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason
