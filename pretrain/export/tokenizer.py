"""A tokenizer as the `tokenizer.json` that `AutoTokenizer` reads, with the same ids.

A SentencePiece model is expressed without SentencePiece. Where they differ, both rare: a letter
followed by two or more separate combining marks that NFC would put into another order or exchange
(SentencePiece takes them as written), and half-width Hangul letters (SentencePiece joins them to
syllables).
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pretrain.tokens.context import Specials
from pretrain.tokens.json_tokenizer import JsonTokenizer, read_json_tokenizer
from pretrain.tokens.sentence_pieces import SentencePieceTokenizer
from pretrain.tokens.tokenizer import Tokenizer

TOKENIZER_JSON, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
_UNIGRAM, _BPE, _NORMAL = 1, 2, 1  # SentencePiece's numbers of model types and of a piece type
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
    made = _built(tokenizer)
    for text in (*_HARD_TEXTS, *captions):
        ours, theirs = tokenizer.encode(text), made.encode(text, add_special_tokens=False).ids
        if ours != theirs:
            raise ValueError(
                f"{tokenizer.file} cannot be written as {TOKENIZER_JSON}: {text!r} would get ids "
                f"{theirs[:8]} instead of {ours[:8]}; export with --format native"
            )
    names = {name: made.id_to_token(i) for name, i in _special_ids(tokenizer).items()}
    made.post_processor = _template(specials, names, tokenizer)
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


def _special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """{transformers' name: id}"""
    known = tokenizer.vocabulary
    ids = {"pad_token": known.pad_id, "bos_token": known.bos_id, "eos_token": known.eos_id}
    return ids if tokenizer.unk_id is None else {**ids, "unk_token": tokenizer.unk_id}


def _template(specials: Specials, names: dict[str, str], tokenizer: Tokenizer) -> Any:
    from tokenizers.processors import TemplateProcessing

    bos, eos = names["bos_token"], names["eos_token"]
    single = {"bos": f"{bos} $A", "eos": f"$A {eos}", "bos_eos": f"{bos} $A {eos}"}[specials]
    places = [(bos, tokenizer.vocabulary.bos_id), (eos, tokenizer.vocabulary.eos_id)]
    return TemplateProcessing(single=single, special_tokens=places)


def _built(tokenizer: Tokenizer) -> Any:
    """A `tokenizers.Tokenizer` without special tokens around a text."""
    if isinstance(tokenizer, JsonTokenizer):
        made = read_json_tokenizer(tokenizer.file, tokenizer.file.read_bytes())
        made.no_padding()
        made.no_truncation()
        made.encode_special_tokens = True  # as the config's split_special_tokens says
        return made
    assert isinstance(tokenizer, SentencePieceTokenizer)
    remedy = "export with --format native"
    return from_pieces(tokenizer.file, tokenizer.file.read_bytes(), remedy)


def from_pieces(file: Path, content: bytes, remedy: str) -> Any:
    """A SentencePiece model as a `tokenizers.Tokenizer`, without special tokens around a text.

    ValueError, which names the file and ends in the remedy, where it cannot be expressed exactly.
    """
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import Regex, decoders, pre_tokenizers
    from tokenizers import Tokenizer as FastTokenizer

    parsed = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    parsed.ParseFromString(content)
    refuse = f"{file} cannot be written as {TOKENIZER_JSON}: "
    remedy = "; " + remedy
    if parsed.trainer_spec.model_type not in (_UNIGRAM, _BPE):
        raise ValueError(refuse + "it is neither a unigram nor a BPE model" + remedy)
    rules = parsed.normalizer_spec
    if not (rules.add_dummy_prefix and rules.remove_extra_whitespaces and rules.escape_whitespaces):
        raise ValueError(refuse + "it keeps white space in a way of its own" + remedy)
    if parsed.trainer_spec.treat_whitespace_as_suffix:
        raise ValueError(refuse + "it joins white space to the end of words" + remedy)
    fast = FastTokenizer(_model(parsed))
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


def _model(parsed: Any) -> Any:
    """The pieces as one of `tokenizers`' models."""
    from tokenizers import models

    fallback, unknown = parsed.trainer_spec.byte_fallback, parsed.trainer_spec.unk_id
    if parsed.trainer_spec.model_type == _UNIGRAM:
        pieces = [(piece.piece, piece.score) for piece in parsed.pieces]
        return models.Unigram(pieces, unk_id=unknown, byte_fallback=fallback)
    places = {piece.piece: place for place, piece in enumerate(parsed.pieces)}
    normal = {piece.piece for piece in parsed.pieces if piece.type == _NORMAL}
    # SentencePiece joins any two pieces whose whole is one, the best-scored whole first.
    merges = [
        (name[:cut], name[cut:])
        for name in sorted(normal, key=lambda name: -parsed.pieces[places[name]].score)
        for cut in range(1, len(name))
        if name[:cut] in normal and name[cut:] in normal
    ]
    unk_token = parsed.pieces[unknown].piece
    return models.BPE(places, merges, unk_token=unk_token, fuse_unk=True, byte_fallback=fallback)


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
