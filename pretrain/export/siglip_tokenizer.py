"""SigLIP's tokenizer as a tokenizer file of ours."""

from pathlib import Path
from typing import Any

from pretrain.export.tokenizer import from_pieces
from pretrain.tokens.given import complete, lower_as_python

_PUNCTUATION = r"[!-/:-@\[-`{-~]"  # Python's string.punctuation
_SPACES = r"[\s\x1c-\x1f]+"  # Python's \s


def siglip_tokenizer(theirs: Any, folder: Path) -> bytes:
    """transformers' SiglipTokenizer, or one with a tokenizer.json, as a file of ours.

    Padding may be the end token. ValueError says what it lacks.
    """
    from transformers import SiglipTokenizer

    if isinstance(theirs, SiglipTokenizer):
        fast = _canonical(theirs, folder)
    elif (fast := getattr(theirs, "backend_tokenizer", None)) is None:
        raise ValueError(
            f"{folder}: its {type(theirs).__name__} is neither a SiglipTokenizer (spiece.model) "
            "nor has it a tokenizer.json; put one beside the weights"
        )
    eos, pad = theirs.eos_token, theirs.pad_token
    if pad is None or eos is None:
        raise ValueError(
            f"{folder}: its tokenizer has pad {pad!r} and eos {eos!r}: write both into its "
            "tokenizer_config.json"
        )
    # A SigLIP text has no first token: the first id stands in for it.
    bos = theirs.bos_token or theirs.convert_ids_to_tokens(0)
    return complete(folder, fast.to_str().encode(), f"{pad},{bos},{eos}")


def _canonical(theirs: Any, folder: Path) -> Any:
    """The pieces behind big_vision's canonical text: lower case, no ASCII punctuation, one space
    between words (transformers' SiglipTokenizer.canonicalize_text)."""
    from tokenizers import Regex, normalizers

    content = theirs.sp_model.serialized_model_proto()
    remedy = "convert a model with a unigram or BPE spiece.model, or with a tokenizer.json"
    fast = from_pieces(folder / "spiece.model", content, remedy)
    fast.normalizer = normalizers.Sequence(
        [
            normalizers.Replace("▁", " "),
            *(lower_as_python() if theirs.do_lower_case else []),
            normalizers.Replace(Regex(_PUNCTUATION), ""),
            normalizers.Replace(Regex(_SPACES), " "),
            normalizers.Replace(Regex(r" \z"), ""),
            fast.normalizer,
        ]
    )
    return fast
