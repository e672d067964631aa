"""Each token carries the syntax class of the word that it lies in."""

from pathlib import Path

import pytest

from data_prep.vocabulary import VocabularyOptions, train_tokenizer
from data_prep.word_classes import encode_pattern, encode_untagged, tag_words
from pretrain.shard_format import WordClass
from pretrain.tokens.tokenizer import Tokenizer, open_tokenizer

N, A, V, O = WordClass.NOUN, WordClass.ADJECTIVE, WordClass.VERB, WordClass.OTHER  # noqa: E741

SENTENCES = [
    ("a red dog is jumping over the big fences", [O, A, N, V, V, O, O, A, N]),
    ("two black cats sleeping on an old wooden chair", [O, A, N, V, O, O, A, A, N]),
    # Title case must not turn every word into a name.
    ("A Small Brown Horse Eating Green Grass Near The House", [O, A, A, N, V, A, N, O, O, N]),
]
TEXTS = [sentence for sentence, _ in SENTENCES] + ["Große Straße in München", "東京 タワー café"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    # Hardly more than the bytes and the letters: most words are cut into several tokens.
    path.write_bytes(train_tokenizer(TEXTS * 3, VocabularyOptions(vocab_size=330)))
    return open_tokenizer(path)


@pytest.mark.parametrize(("sentence", "classes"), SENTENCES)
def test_words_of_a_sentence(sentence: str, classes: list[WordClass]) -> None:
    assert tag_words(sentence.split()) == classes


@pytest.mark.parametrize(("sentence", "classes"), SENTENCES)
def test_tokens_take_the_class_of_their_word(
    tokenizer: Tokenizer, sentence: str, classes: list[WordClass]
) -> None:
    ids, found = encode_pattern(tokenizer, sentence)
    assert ids == tokenizer.encode(sentence) and len(found) == len(ids) > len(classes)
    # An independent way: pieces spell the sentence in order, each ▁ beginning the next word.
    word = -1
    for token, token_class in zip(ids, found, strict=True):
        word += tokenizer.processor.id_to_piece(token).startswith("▁")
        assert token_class == classes[word], (tokenizer.processor.id_to_piece(token), word)


def test_punctuation_is_other(tokenizer: Tokenizer) -> None:
    ids, found = encode_pattern(tokenizer, "dog, cat!")
    pieces = [tokenizer.processor.id_to_piece(token) for token in ids]
    assert found[0] == N and found[pieces.index("▁c" if "▁c" in pieces else "▁") :][0] == N
    assert found[-1] == O, pieces


@pytest.mark.parametrize(
    "text",
    [
        "Große Straße und ﬁne ½ Ärger 東京 café 😀 dog",
        "x́ ŉ ﷺ dog",
        "ＦＵＬＬ width　dog",
        "👩‍👩‍👧 family",
        "",
        "!?",
        "…",
    ],
)
def test_offsets_survive_normalisation(tokenizer: Tokenizer, text: str) -> None:
    """Characters that widen, vanish or take several bytes shift nothing after them."""
    ids, starts = tokenizer.encode_with_offsets(text)
    assert ids == tokenizer.encode(text)
    assert all(0 <= start <= len(text) for start in starts) and starts == sorted(starts)
    _, found = encode_pattern(tokenizer, text)
    assert len(found) == len(ids)
    if text.endswith("dog"):
        first = next(i for i, start in enumerate(starts) if start >= len(text) - 4)
        assert set(found[first:]) == {N}


def test_untagged_is_all_other(tokenizer: Tokenizer) -> None:
    ids, found = encode_untagged(tokenizer, "a red dog")
    assert ids == tokenizer.encode("a red dog") and set(found) == {O} and len(found) == len(ids)


def test_a_tokenizer_has_the_contract_s_special_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    processor = tokenizer.processor
    assert [processor.id_to_piece(i) for i in range(4)] == ["<pad>", "<s>", "</s>", "<unk>"]
    assert tokenizer.encode("A RED Dog") == tokenizer.encode("a red dog")
    assert 3 not in tokenizer.encode("ж unseen 漢字 🎉")  # spelled in bytes, never unknown
