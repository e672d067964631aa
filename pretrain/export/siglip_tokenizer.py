"""SigLIP's tokenizer as a tokenizer file of ours."""

from pathlib import Path
from typing import Any

from pretrain.export.tokenizer import from_pieces
from pretrain.tokens.given import complete, lower_as_python

_PUNCTUATION = r"[!-/:-@\[-`{-~]"  # Python's string.punctuation
_SPACES = r"[\s\x1c-\x1f]+"  # Python's \s


def siglip_tokenizer(theirs: Any, folder: Path, *, canonical: bool = False) -> bytes:
    """transformers' SiglipTokenizer, or one with a tokenizer.json, as a file of ours.

    canonical: open_clip makes texts canonical before. Padding may be the end token. ValueError says
    what it lacks.
    """
    from transformers import SiglipTokenizer

    if isinstance(theirs, SiglipTokenizer):
        fast = _of_pieces(theirs, folder)
    elif (fast := getattr(theirs, "backend_tokenizer", None)) is None:
        raise ValueError(
            f"{folder}: its {type(theirs).__name__} is neither a SiglipTokenizer (spiece.model) "
            "nor has it a tokenizer.json; put one beside the weights"
        )
    if canonical:
        # open_clip's canonicalize_text, which leaves a space for a "_".
        fast = _behind([_replace("_", " "), _replace(_PUNCTUATION, ""), *lower_as_python()], fast)
    eos, pad = theirs.eos_token, theirs.pad_token
    if pad is None or eos is None:
        raise ValueError(
            f"{folder}: its tokenizer has pad {pad!r} and eos {eos!r}: write both into its "
            "tokenizer_config.json"
        )
    # A SigLIP text has no first token: the first id stands in for it.
    bos = theirs.bos_token or theirs.convert_ids_to_tokens(0)
    return complete(folder, fast.to_str().encode(), f"{pad},{bos},{eos}")


def _of_pieces(theirs: Any, folder: Path) -> Any:
    """The pieces behind transformers' SiglipTokenizer.canonicalize_text: lower case, no ASCII
    punctuation, one space between words."""
    content = theirs.sp_model.serialized_model_proto()
    remedy = "convert a model with a unigram or BPE spiece.model, or with a tokenizer.json"
    fast = from_pieces(folder / "spiece.model", content, remedy)
    lower = lower_as_python() if theirs.do_lower_case else []
    return _behind([_replace("▁", " "), *lower, _replace(_PUNCTUATION, "")], fast)


def _behind(cleaning: list[Any], fast: Any) -> Any:
    """The tokenizer, with texts cleaned first; white space single and at no end."""
    from tokenizers import normalizers

    own = [fast.normalizer] if fast.normalizer is not None else []
    spaces = [_replace(_SPACES, " "), _replace(r"\A | \z", "")]
    fast.normalizer = normalizers.Sequence([*cleaning, *spaces, *own])
    return fast


def _replace(pattern: str, by: str) -> Any:
    from tokenizers import Regex, normalizers

    return normalizers.Replace(Regex(pattern), by)
