"""What a model must know of a tokenizer: how many ids there are, and which of them are special."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Sizes the token embedding and names the ids around a text. A dataset's manifest owns it."""

    size: int
    """Ids go from 0 to below this."""
    pad_id: int
    """Fills a context behind its text. A text may hold it too (CLIP's 0 is "!"), and it may be
    eos_id (SigLIP)."""
    bos_id: int
    """Begins a text."""
    eos_id: int
    """Ends a text."""

    def __post_init__(self) -> None:
        ids = (self.pad_id, self.bos_id, self.eos_id)
        exist = all(0 <= token < self.size for token in ids)
        if self.bos_id in (self.pad_id, self.eos_id) or not exist:
            raise ValueError(
                f"special ids pad/bos/eos {ids} of a vocabulary of {self.size} ids: they must be "
                "ids of it, bos none of the others; choose another tokenizer, or name them by "
                "`data_prep build --special-tokens`"
            )
