"""Each token carries the syntax class of the word that it lies in."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
from data_prep_corpus import plain_corpus
from tiny_runs import ROOT

from data_prep.__main__ import main
from data_prep.text.sentences import sentence_breaks
from data_prep.text.vocabulary import VocabularyOptions, train_tokenizer
from data_prep.text.word_classes import TaggerName, TokenTagger, load_spacy, tag_words
from pretrain.tokens.tokenizer import Tokenizer, open_tokenizer
from pretrain.tokens.word_classes import SENTENCE_START, WordClass

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


def tagged(name: TaggerName, tokenizer: Tokenizer, text: str) -> tuple[list[int], list[int]]:
    """(ids, classes without the sentences' bit), which the first token alone has here."""
    ids, classes = TokenTagger(name, tokenizer).encode(text)
    assert [byte >= SENTENCE_START for byte in classes] == [i == 0 for i in range(len(ids))]
    return ids, [byte & ~SENTENCE_START for byte in classes]


@pytest.mark.parametrize(("sentence", "classes"), SENTENCES)
def test_words_of_a_sentence(sentence: str, classes: list[WordClass]) -> None:
    assert tag_words(sentence.split()) == classes


@pytest.mark.parametrize(("sentence", "classes"), SENTENCES)
def test_tokens_take_the_class_of_their_word(
    tokenizer: Tokenizer, sentence: str, classes: list[WordClass]
) -> None:
    ids, found = tagged("textblob", tokenizer, sentence)
    assert ids == tokenizer.encode(sentence) and len(found) == len(ids) > len(classes)
    # An independent way: pieces spell the sentence in order, each ▁ beginning the next word.
    word = -1
    for token, token_class in zip(ids, found, strict=True):
        word += tokenizer.processor.id_to_piece(token).startswith("▁")
        assert token_class == classes[word], (tokenizer.processor.id_to_piece(token), word)


def test_punctuation_is_other(tokenizer: Tokenizer) -> None:
    ids, found = tagged("textblob", tokenizer, "dog, cat!")
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
    _, found = tagged("textblob", tokenizer, text)
    assert len(found) == len(ids)
    if text.endswith("dog"):
        first = next(i for i, start in enumerate(starts) if start >= len(text) - 4)
        assert set(found[first:]) == {N}


def test_untagged_is_all_other(tokenizer: Tokenizer) -> None:
    ids, found = tagged("none", tokenizer, "a red dog")
    assert ids == tokenizer.encode("a red dog") and set(found) == {O} and len(found) == len(ids)


def test_a_tokenizer_has_the_contract_s_special_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    processor = tokenizer.processor
    assert [processor.id_to_piece(i) for i in range(4)] == ["<pad>", "<s>", "</s>", "<unk>"]
    assert tokenizer.encode("A RED Dog") == tokenizer.encode("a red dog")
    assert 3 not in tokenizer.encode("ж unseen 漢字 🎉")  # spelled in bytes, never unknown


CUT = [
    ("One dog. Two cats!  A bird? Yes", ["One dog.", "Two cats!", "A bird?", "Yes"]),
    ("Dr. Wu and J. S. Bach at St. Paul's. He sat.",
     ["Dr. Wu and J. S. Bach at St. Paul's.", "He sat."]),
    ("It is 3.5 m, e.g. here, the U.S. flag.", ["It is 3.5 m, e.g. here, the U.S. flag."]),
    ('He said "Stop!" Then left...', ['He said "Stop!"', "Then left..."]),
    ("犬がいる。猫もいる！終わり", ["犬がいる。", "猫もいる！", "終わり"]),
    ("wait... what", ["wait...", "what"]),
    ("no mark at all", ["no mark at all"]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "sentences"), CUT)
def test_sentences(text: str, sentences: list[str]) -> None:
    cuts = [0, *sentence_breaks(text), len(text)]
    assert [text[a:b].strip() for a, b in itertools.pairwise(cuts)] == sentences


@pytest.mark.parametrize("name", ["textblob", "vocabulary", "none"])
@pytest.mark.parametrize(("text", "sentences"), CUT)
def test_the_first_token_of_a_sentence_is_marked(
    tokenizer: Tokenizer, name: TaggerName, text: str, sentences: list[str]
) -> None:
    ids, classes = TokenTagger(name, tokenizer).encode(text)
    marked = [i for i, byte in enumerate(classes) if byte & SENTENCE_START]
    assert len(marked) == len(sentences) and marked[0] == 0
    # An independent way: the pieces between the marks spell the sentences.
    for (a, b), sentence in zip(itertools.pairwise([*marked, len(ids)]), sentences, strict=True):
        assert tokenizer.processor.decode(ids[a:b]).strip() == " ".join(
            tokenizer.processor.normalize(sentence).replace("▁", " ").split()
        )
    assert all(1 <= byte & ~SENTENCE_START <= 4 for byte in classes)


def test_the_vocabulary_s_table_tags_each_piece_by_itself(tokenizer: Tokenizer) -> None:
    text = "a red dog is jumping over the big fences, dog"
    ids, found = tagged("vocabulary", tokenizer, text)
    assert ids == tokenizer.encode(text)
    for token, kind in zip(ids, found, strict=True):
        piece = tokenizer.processor.id_to_piece(token)
        word = "" if piece.startswith("<") else "".join(filter(str.isalpha, piece))
        assert kind == (tag_words([word])[0] if word else O), word


def test_a_tagger_that_is_not_installed_is_said_on_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    load_spacy.cache_clear()
    source = plain_corpus(tmp_path / "corpus.parquet")
    request = ["build", "--source", str(source), "--out", str(tmp_path / "out")]
    assert main([*request, "--tagger", "spacy"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: tagger=spacy") and told.count("\n") == 1
    assert "pip install spacy" in told and not (tmp_path / "out").exists()


def test_textblob_is_imported_by_the_taggers_that_need_it_alone() -> None:
    script = (
        "import sys, data_prep.__main__; sys.exit(bool({'textblob', 'nltk'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0
