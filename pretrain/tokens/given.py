"""A tokenizer that the user names, as the file that a dataset holds.

A SentencePiece model stays as it is; all others become a tokenizer.json that says its special ids.
"""

import gzip
import importlib.util
import zlib
from pathlib import Path
from typing import Any

from pretrain.tokens.json_tokenizer import JsonTokenizer, read_json_tokenizer
from pretrain.tokens.tokenizer import is_json

CLIP = Path("clip")  # as --tokenizer: CLIP's merges, of the installed open_clip
_MERGES_FILE = "bpe_simple_vocab_16e6.txt.gz"
# Of the file's merges CLIP takes so many (open_clip, SimpleTokenizer).
_CLIP_MERGES = 49_152 - 256 - 2
_MOST_BYTES = 1 << 28  # of a packed file; CLIP's merges unpack to 3 MB
_WORD_PIECE_SPECIALS = ("[PAD]", "[CLS]", "[SEP]")
# (pad, bos, eos) as well-known vocabularies call them, where a tokenizer.json does not say.
_WELL_KNOWN = (
    _WORD_PIECE_SPECIALS,
    ("<pad>", "<s>", "</s>"),
    ("[PAD]", "[BOS]", "[EOS]"),
    ("<pad>", "<bos>", "<eos>"),
    ("!", "<|startoftext|>", "<|endoftext|>"),
    ("!", "<start_of_text>", "<end_of_text>"),
)
_CASED, _IGNORED = r"[\p{Lu}\p{Ll}\p{Lt}]", r"['’.:·\p{Mn}\p{Me}\p{Cf}\p{Lm}\p{Sk}]"
_FINAL_SIGMA = f"(?<={_CASED}|{_CASED}{_IGNORED})Σ(?!{_IGNORED}*{_CASED})"
_CLIP_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


def read_given(given: Path, special_tokens: str | None) -> bytes:
    """The file to store. ValueError says what was found, and which option to change."""
    path = clip_merges() if given == CLIP and not given.exists() else given
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            with gzip.open(path) as file:
                content = file.read(_MOST_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"tokenizer={path} is damaged ({error}); fetch it again") from error
        if len(content) > _MOST_BYTES:
            raise ValueError(
                f"tokenizer={path} unpacks to more than {_MOST_BYTES:,} bytes, which no list of "
                "merges has; fetch it again"
            )
    lines = _lines(content)
    if lines and "#version" in lines[0]:
        return _as_file(clip_bpe(path, lines[1:]))
    if {"[UNK]", *_WORD_PIECE_SPECIALS} <= set(lines):
        return _as_file(word_pieces(lines))
    if is_json(content):
        return complete(path, content, special_tokens)
    if special_tokens is not None:
        raise ValueError(
            f"special_tokens={special_tokens!r} is for a tokenizer.json, and tokenizer={path} is "
            "none; drop --special-tokens"
        )
    return content


def clip_merges() -> Path:
    """CLIP's merges in the installed open_clip, which is not imported. ValueError without it."""
    spec = importlib.util.find_spec("open_clip")
    path = spec and spec.origin and Path(spec.origin).with_name(_MERGES_FILE)
    if not path or not path.is_file():
        raise ValueError(
            f"tokenizer=clip takes {_MERGES_FILE} of open_clip, which is not installed: pip "
            f"install open_clip_torch, or give --tokenizer PATH/{_MERGES_FILE}"
        )
    return path


def _lines(content: bytes) -> list[str]:
    try:
        return content.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        return []


def clip_bpe(path: Path, merges: list[str]) -> Any:
    """CLIP's tokenizer with the ids of open_clip's SimpleTokenizer on cleaned captions, but that a
    special token's name in a text is text. The libraries' tables of letters may part at characters
    that Unicode has had for a few years only.

    Source: open_clip, tokenizer.py (openai/CLIP, simple_tokenizer.py); pad is its 0, which is "!".
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    split = [line.split() for line in merges[:_CLIP_MERGES] if line]
    if not split or any(len(pair) != 2 for pair in split):
        raise ValueError(f"tokenizer={path}: its lines are not pairs of merges; fetch it again")
    pairs = [(left, right) for left, right in split]
    letters = _byte_letters()
    names = [*letters, *(letter + "</w>" for letter in letters)]
    names += [left + right for left, right in pairs]
    bos, eos = "<start_of_text>", "<end_of_text>"
    vocabulary = {name: place for place, name in enumerate([*names, bos, eos])}
    try:
        fast = Tokenizer(models.BPE(vocabulary, pairs, end_of_word_suffix="</w>"))
    except Exception as error:  # the package raises bare Exception
        raise ValueError(
            f"tokenizer={path}: its merges are not of one list ({error}); fetch it again"
        ) from error
    fast.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(Regex(r"\s+"), " "),
            *lower_as_python(),
        ]
    )
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    fast.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("</w>", " ")])
    return _with_specials(fast, (letters[0], bos, eos))


def lower_as_python() -> list[Any]:
    """Normalizers that lower as str.lower does: the dot of İ stays, a Σ that ends a word is ς."""
    from tokenizers import Regex, normalizers

    return [
        normalizers.Replace("İ", "i\u0307"),
        normalizers.Replace(Regex(_FINAL_SIGMA), "ς"),
        normalizers.Lowercase(),
    ]


def _byte_letters() -> list[str]:
    """A printable letter for each byte, in the order of CLIP's ids (GPT-2's bytes_to_unicode)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    shown += range(ord("®"), ord("ÿ") + 1)
    return [chr(byte) for byte in shown] + [chr(256 + i) for i in range(256 - len(shown))]


def word_pieces(lines: list[str]) -> Any:
    """BERT's WordPiece of a vocab.txt; a vocabulary without capitals folds case and accents."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    names = lines[: len(lines) - (lines[-1] == "")]  # the file ends in a line break
    vocabulary = {name: place for place, name in enumerate(names)}
    cased = any(name != name.lower() for name in names if not name.startswith("["))
    fast = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    fast.normalizer = normalizers.BertNormalizer(lowercase=not cased)
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.decoder = decoders.WordPiece()
    return _with_specials(fast, _WORD_PIECE_SPECIALS)


def complete(path: Path, content: bytes, special_tokens: str | None) -> bytes:
    """A tokenizer.json that says its special ids; as it is, if it does so already."""
    if special_tokens is None:
        try:
            JsonTokenizer(path, content)
            return content
        except ValueError:
            pass
    fast = read_json_tokenizer(path, content)
    if special_tokens is not None:
        names = tuple(special_tokens.split(","))
        missing = [name for name in names if fast.token_to_id(name) is None]
        if len(names) != 3 or missing:
            raise ValueError(
                f"special_tokens={special_tokens!r}: three tokens of {path} are needed as "
                f"PAD,BOS,EOS, found {len(names)}, of which it lacks {missing}; change "
                "--special-tokens"
            )
        return _as_file(_with_specials(fast, names))
    for names in _WELL_KNOWN:
        if all(fast.token_to_id(name) is not None for name in names):
            return _as_file(_with_specials(fast, names))
    shown = sorted(token.content for token in fast.get_added_tokens_decoder().values())
    raise ValueError(
        f"tokenizer={path} does not say its padding and what begins and ends a text; its special "
        f"tokens are {shown[:8]}: name three by --special-tokens PAD,BOS,EOS"
    )


def _with_specials(fast: Any, names: tuple[str, ...]) -> Any:
    """The tokenizer, with pad, bos and eos written into it."""
    from tokenizers import AddedToken
    from tokenizers.processors import TemplateProcessing

    pad, bos, eos = names
    ids = {name: fast.token_to_id(name) for name in names}
    fast.add_special_tokens(
        [AddedToken(name, normalized=False, special=True) for name in (bos, eos)]
    )
    fast.post_processor = TemplateProcessing(
        single=f"{bos} $A {eos}", special_tokens=[(bos, ids[bos]), (eos, ids[eos])]
    )
    fast.enable_padding(pad_id=ids[pad], pad_token=pad)
    return fast


def _as_file(fast: Any) -> bytes:
    return (fast.to_str() + "\n").encode()
