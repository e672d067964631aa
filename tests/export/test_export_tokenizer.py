"""`AutoTokenizer` on an export gives SentencePiece's ids, or no tokenizer.json is written."""

import io
import random
import unicodedata

import polars
import pytest
from sentencepiece import SentencePieceTrainer
from tiny_datasets import CORPUS
from transformers import AutoTokenizer

from pretrain.export.tokenizer import tokenizer_files
from pretrain.tokens.context import context
from pretrain.tokens.tokenizer import Tokenizer, open_tokenizer

SEED = 0


def captions() -> list[str]:
    """Every text of the demo corpus."""
    table = polars.read_parquet(CORPUS, columns=["caption", "keywords", "group", "subgroup"])
    return sorted({text for column in table for text in column.drop_nulls()})


def train(path, **options) -> Tokenizer:
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(captions()), model_writer=model, num_threads=1, minloglevel=2,
        hard_vocab_limit=False, pad_id=0, bos_id=1, eos_id=2, unk_id=3,
        **{"vocab_size": 2000, "normalization_rule_name": "nmt_nfkc_cf", **options},
    )  # fmt: skip
    path.write_bytes(model.getvalue())
    return open_tokenizer(path)


def odd_texts() -> list[str]:
    """Every character of the basic plane, in NFC beside others, and random mixtures."""
    draw = random.Random(SEED)
    # U+0344, a deprecated mark that stands for two, is in no text in NFC.
    plane = [chr(code) for code in range(0x10000) if not 0xD800 <= code < 0xE000 and code != 0x344]
    marks = [chr(code) for code in range(0x300, 0x370)]
    letters = (
        "aAeEqQ \t\n\r\u3000▁<s>/´éﬁ日本語한글ｶﾞﾊﾟ①½²İıßΣς😀👩\u200d👧☺\ufe0f🇩🇪👍🏽\u00ad\u200b\x01"
    )
    mixtures = ["".join(draw.choices(letters, k=draw.randint(0, 14))) for _ in range(10_000)]
    accents = [draw.choice("aAeEoOuUyqQ") + "".join(draw.choices(marks, k=2)) for _ in range(5000)]
    decomposed = [unicodedata.normalize("NFD", character) for character in plane]
    return [
        *("", "   ", "double  spaces", "naïve café", "日本語", "<s> a<unk>b </s> <pad> <0x41>"),
        *(f"a{character}b" for character in plane),
        *(f"a{text}b" for text in decomposed if len(text) > 1),
        *(unicodedata.normalize("NFC", text) for text in accents),
        *mixtures,
    ]


@pytest.mark.parametrize(
    "options",
    [{}, {"byte_fallback": True}, {"normalization_rule_name": "nmt_nfkc"},
     {"normalization_rule_name": "identity"}, {"model_type": "bpe"},
     {"model_type": "bpe", "byte_fallback": True}],
    ids=["lower case", "byte fallback", "upper case", "no map", "bpe", "bpe, bytes"],
)  # fmt: skip
def test_the_ids_are_sentencepieces(tmp_path, options):
    tokenizer = train(tmp_path / "tokenizer.model", **options)
    for name, content in tokenizer_files(tokenizer, "bos_eos", 12, []).items():
        (tmp_path / name).write_text(content)
    (tmp_path / "tokenizer.model").rename(tmp_path / "elsewhere.model")
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    texts = captions() + odd_texts()
    got = theirs(texts, add_special_tokens=False)["input_ids"]
    wrong = [
        (text, tokenizer.encode(text), ids)
        for text, ids in zip(texts, got, strict=True)
        if tokenizer.encode(text) != ids
    ]
    assert not wrong, f"{len(wrong)} of {len(texts)} texts differ: {wrong[:3]!a}"

    whole = ["red apple", "", "a cup of tea with a very long caption " * 3]
    padded = theirs(whole, padding="max_length", truncation=True, max_length=12)["input_ids"]
    assert (
        padded
        == context(
            [tokenizer.encode(text) for text in whole], 12, "bos_eos", tokenizer.vocabulary
        ).tolist()
    )


def test_what_cannot_be_expressed_is_refused(tmp_path):
    words = train(tmp_path / "words.model", model_type="word")
    with pytest.raises(ValueError, match=r"neither a unigram nor a BPE model; export with --f"):
        tokenizer_files(words, "bos", 8, [])
    spaces = train(tmp_path / "spaces.model", remove_extra_whitespaces=False)
    with pytest.raises(ValueError, match="white space"):
        tokenizer_files(spaces, "bos", 8, [])
    tokenizer = train(tmp_path / "tokenizer.model")
    with pytest.raises(ValueError, match="would get ids"):  # not in NFC
        tokenizer_files(tokenizer, "bos", 8, ["a\u0344b"])
