"""Syntax by words keeps what clipa_torch's syntax_mask_tokenize keeps of a text: the first words of
its order, joined again, encoded again, and cut."""

import numpy as np
import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models, normalizers, pre_tokenizers, trainers

from pretrain.tokens.given import CLIP, read_given
from pretrain.tokens.text_reduction import reduce_tokens
from pretrain.tokens.tokenizer import Tokenizer, open_tokenizer
from pretrain.tokens.word_classes import SENTENCE_START
from pretrain.tokens.word_edges import SPACE, WORD_BEGINS, WORD_ENDS, word_edges

TEXT = "a dog , photographer runs unbelievably over the antidisestablishment . of zebras !"
WORDS = TEXT.split(" ")
KEEP = 6


def clip(folder) -> Tokenizer:
    path = folder / "tokenizer.json"
    path.write_bytes(read_given(CLIP, None))
    return open_tokenizer(path)


def word_pieces(folder) -> Tokenizer:
    fast = FastTokenizer(models.WordPiece(unk_token="[UNK]"))
    fast.normalizer = normalizers.BertNormalizer(lowercase=True)
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=60, special_tokens=names, show_progress=False)
    fast.train_from_iterator([TEXT] * 3, trainer)
    known = fast.get_vocab()
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("".join(f"{name}\n" for name in sorted(known, key=known.__getitem__)))
    path = folder / "tokenizer.json"
    path.write_bytes(read_given(vocabulary, None))
    return open_tokenizer(path)


def sentence_pieces(folder) -> Tokenizer:
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT] * 50), model_prefix=str(folder / "m"),
        vocab_size=60, pad_id=0, unk_id=1, bos_id=2, eos_id=3, hard_vocab_limit=False,
        minloglevel=2,
    )  # fmt: skip
    return open_tokenizer(folder / "m.model")


@pytest.mark.parametrize("kind", [clip, word_pieces, sentence_pieces])
def test_words_are_those_of_the_text_chosen_encoded_and_cut(kind, tmp_path):
    tokenizer, draw = kind(tmp_path), np.random.default_rng(0)
    edges = word_edges(tokenizer.pieces())
    several = 0
    for _ in range(300):
        words = draw.choice(WORDS, draw.integers(1, 14)).tolist()
        tags = draw.integers(1, 5, len(words))
        chosen = sorted(np.argsort(tags, kind="stable")[:KEEP].tolist())
        wanted = tokenizer.encode(" ".join(words[i] for i in chosen))[:KEEP]

        text = " ".join(words)
        of_place = np.concatenate(
            [np.full(len(w) + 1, tag) for w, tag in zip(words, tags, strict=True)]
        )
        ids, starts = tokenizer.encode_with_offsets(text)
        at = [s + (text[s] == " ") for s in starts]
        classes = of_place[at]
        classes[0] |= SENTENCE_START
        several += len(ids) > len(words) > KEEP
        kept, (length,) = reduce_tokens(
            *("syntax", np.array([ids]), classes[None], np.array([len(ids)]), KEEP),
            np.zeros((1, len(ids))),
            edges=edges,
        )
        if len(ids) > KEEP:
            assert kept[0, :length].tolist() == wanted, (text, tags)
        else:
            assert kept[0, :length].tolist() == ids
    assert several > 50, "words of several tokens are needed"


def test_edges_by_the_marks_of_each_kind():
    b, e = WORD_BEGINS, WORD_ENDS
    assert word_edges([" dog", "gy", ".", " ,", " "]).tolist() == [b, 0, b + e, b + e, b + SPACE]
    assert word_edges(["dog ", "gy", "ing</w>", "!"]).tolist() == [e, 0, e, b + e]
    assert word_edges(["dog", "##gy", "##s"]).tolist() == [b, 0, 0]
    with pytest.raises(ValueError, match="does not mark where a word begins"):
        word_edges(["dog", "gy"])
