"""What a model must know of a tokenizer: how many ids there are, and which of them are special."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Sizes the token embedding and names the ids around a text. A dataset's manifest owns it."""

    size: int
    """Ids go from 0 to below this."""
    pad_id: int
    """Fills a context behind its text. A text may hold it too (CLIP's 0 is "!")."""
    bos_id: int
    """Begins a text."""
    eos_id: int
    """Ends a text."""

    def __post_init__(self) -> None:
        ids = (self.pad_id, self.bos_id, self.eos_id)
        if len(set(ids)) < 3 or not all(0 <= token < self.size for token in ids):
            raise ValueError(
                f"special ids pad/bos/eos {ids} of a vocabulary of {self.size} ids: they must be "
                "three different ids of it; choose another tokenizer, or name them by "
                "`data_prep build --special-tokens`"
            )
