"""A SentencePiece model as a `tokenizer.json` that gives the same ids without SentencePiece.

Where they differ, both rare: a letter followed by two or more separate combining marks that NFC
would put into another order or exchange (SentencePiece takes them as written), and half-width
Hangul letters (SentencePiece joins them to syllables).
"""

import json
import re
from collections.abc import Iterable
from typing import Any

from pretrain.tokens.context import Specials
from pretrain.tokens.tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID, Tokenizer

TOKENIZER_JSON, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
_UNIGRAM, _NORMAL = 1, 1  # SentencePiece's numbers of a model type and of a piece type
_SPACE = "▁"
# Stands between characters while the character map is applied: `tokenizers` looks a whole grapheme
# up and would lose the accents of one that the map does not hold. The map deletes it.
_APART = "\x01"
# The map joins these two to one character, which NFC does not.
_HALF_WIDTH_KATAKANA, _VOICING_MARKS = range(0xFF66, 0xFF9E), "\uff9e\uff9f\u3099\u309a"
# What a text may hold that tells the two apart, besides captions of the dataset.
_HARD_TEXTS = (
    "", " ", "  red \t apple\n", "Red APPLE", "naïve café", "e\u0301te\u0301 A\u030angstro\u0308m",
    "日本語 한국어 ﾊﾞﾅﾅ", "👩‍👩‍👧 🇩🇪 👍🏽 ☺️", "½ ﬁ ① ² Ａ", "<s> </s> <pad> a<unk>b <0x41>",
    "▁ a▁b ▁", "Q\u0301 \u00ad\u200b\ufeff", "ﬁ\u0301 İ ß Σς",
)  # fmt: skip


def tokenizer_files(
    tokenizer: Tokenizer, specials: Specials, tokens: int, captions: Iterable[str]
) -> dict[str, str]:
    """{file name: content} for `AutoTokenizer`: our content ids with `specials` around them.

    ValueError where the model cannot be expressed exactly, or a caption gets other ids.
    """
    made = _build(tokenizer)
    for text in (*_HARD_TEXTS, *captions):
        ours, theirs = tokenizer.encode(text), made.encode(text, add_special_tokens=False).ids
        if ours != theirs:
            raise ValueError(
                f"{tokenizer.file} cannot be written as {TOKENIZER_JSON}: {text!r} would get ids "
                f"{theirs[:8]} instead of {ours[:8]}; export with --format native"
            )
    names = {name: made.id_to_token(i) for name, i in _SPECIAL_IDS.items()}
    made.post_processor = _template(specials, names)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": tokens,
        "padding_side": "right",
        "truncation_side": "right",
        "model_input_names": ["input_ids"],
        "split_special_tokens": True,  # "<s>" in a caption is text
        "clean_up_tokenization_spaces": False,
        **names,
    }
    return {
        TOKENIZER_JSON: made.to_str(pretty=True) + "\n",
        TOKENIZER_CONFIG: json.dumps(config, indent=2, ensure_ascii=False) + "\n",
    }


_SPECIAL_IDS = {"pad_token": PAD_ID, "bos_token": BOS_ID, "eos_token": EOS_ID, "unk_token": UNK_ID}


def _template(specials: Specials, names: dict[str, str]) -> Any:
    from tokenizers.processors import TemplateProcessing

    bos, eos = names["bos_token"], names["eos_token"]
    single = {"bos": f"{bos} $A", "eos": f"$A {eos}", "bos_eos": f"{bos} $A {eos}"}[specials]
    return TemplateProcessing(single=single, special_tokens=[(bos, BOS_ID), (eos, EOS_ID)])


def _build(tokenizer: Tokenizer) -> Any:
    """A `tokenizers.Tokenizer` without special tokens around a text."""
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as FastTokenizer

    parsed = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    parsed.ParseFromString(tokenizer.file.read_bytes())
    refuse = f"{tokenizer.file} cannot be written as {TOKENIZER_JSON}: "
    remedy = "; export with --format native"
    if parsed.trainer_spec.model_type != _UNIGRAM:
        raise ValueError(refuse + "it is not a unigram model" + remedy)
    rules = parsed.normalizer_spec
    if not (rules.add_dummy_prefix and rules.remove_extra_whitespaces and rules.escape_whitespaces):
        raise ValueError(refuse + "it keeps white space in a way of its own" + remedy)
    if parsed.trainer_spec.treat_whitespace_as_suffix:
        raise ValueError(refuse + "it joins white space to the end of words" + remedy)
    fast = FastTokenizer(
        models.Unigram(
            [(piece.piece, piece.score) for piece in parsed.pieces],
            unk_id=UNK_ID,
            byte_fallback=parsed.trainer_spec.byte_fallback,
        )
    )
    fast.normalizer = _normaliser(parsed.SerializeToString(), rules.precompiled_charsmap)
    # SentencePiece never finds its reserved pieces ("<s>", "<0x41>") in a text; `tokenizers` does
    # unless they are cut, where no other piece reaches across and no two unknowns become one.
    reserved = [piece.piece for piece in parsed.pieces if piece.type != _NORMAL]
    normal = {piece.piece for piece in parsed.pieces if piece.type == _NORMAL}
    last = {name[-2] for name in reserved if re.fullmatch("<[^<>]+>", name)}
    across = [piece for piece in normal if any(letter + ">" in piece for letter in last)]
    unknown = last - normal if not parsed.trainer_spec.byte_fallback else set()
    if across or unknown:
        raise ValueError(
            refuse + f"its reserved pieces {reserved[:4]} would be found in texts" + remedy
        )
    names = [re.escape(name[:-1]) for name in reserved]  # bytes have names of one length: one rule
    names = sorted({"<0x[0-9A-F]{2}" if name.startswith("<0x") else name for name in names})
    fast.pre_tokenizer = pre_tokenizers.Split(
        Regex(f"(?<={'|'.join(names)})>"), behavior="merged_with_next"
    )
    fast.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    return fast


def _normaliser(model: bytes, charsmap: bytes) -> Any:
    """SentencePiece's normalisation: characters by its own map, then white space."""
    from sentencepiece import SentencePieceNormalizer
    from tokenizers import Regex, normalizers

    spaces = [
        normalizers.Replace(Regex(" {2,}"), " "),
        normalizers.Replace(Regex(r"\A "), ""),
        normalizers.Prepend(_SPACE),
        normalizers.Replace(" ", _SPACE),
        normalizers.Replace(Regex(_SPACE + r"+\z"), ""),
    ]
    if not charsmap:
        return normalizers.Sequence(spaces)
    characters = [
        normalizers.NFC(),
        normalizers.Replace(Regex(r"(?=[^\x00-\x7f])"), _APART),
        normalizers.Precompiled(charsmap),
        normalizers.Replace(_APART, ""),
    ]
    alone = normalizers.Sequence(characters)
    judge = SentencePieceNormalizer(model_proto=model)
    voiced = [base + mark for base in map(chr, _HALF_WIDTH_KATAKANA) for mark in _VOICING_MARKS]
    whole = {text: judge.normalize(text).removeprefix(_SPACE) for text in voiced}
    joined = [
        normalizers.Replace(text, made)
        for text, made in whole.items()
        if alone.normalize_str(text) != made
    ]
    return normalizers.Sequence([*joined, *characters, *spaces])
