"""A given tokenizer has its own library's ids, in a dataset and after the export."""

import gzip
import json
import random
from pathlib import Path

import numpy as np
import open_clip
import polars
import pytest
from data_prep_corpus import options, plain_corpus
from tiny_datasets import CORPUS
from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as FastTokenizer
from transformers import AutoTokenizer, BertTokenizer

from data_prep.__main__ import main
from data_prep.build.pipeline import build_dataset
from data_prep.text.captions import UNSEEN, clean_text
from pretrain.dataset.reader import Dataset
from pretrain.export.tokenizer import tokenizer_files
from pretrain.tokens.context import context
from pretrain.tokens.given import CLIP, clip_merges, read_given
from pretrain.tokens.json_tokenizer import read_json_tokenizer
from pretrain.tokens.tokenizer import Tokenizer, open_tokenizer, parse_tokenizer

LETTERS = (
    "aAbeEqQ \t\n'sS'tT'LL’dDſİıΣσς ß!!??…--__.,;:0123456789½²①"
    "éÉ日本語한글😀👩\u200d👧☺\ufe0f🇩🇪&amp;&lt;[]"
)


def texts(count: int) -> list[str]:
    """Captions of the demo corpus, then mixtures of hard letters."""
    table = polars.read_parquet(CORPUS, columns=["caption", "keywords", "group", "subgroup"])
    captions = sorted({text for column in table for text in column.drop_nulls()})
    draw = random.Random(0)
    words = [word for text in captions[:500] for word in text.split()] + list(LETTERS)
    mixtures = [
        "".join(draw.choices(LETTERS, k=draw.randint(0, 20))) if i % 2
        else " ".join(draw.choices(words, k=draw.randint(1, 30))).upper()
        for i in range(count - len(captions))
    ]  # fmt: skip
    return [*captions, *mixtures]


def stored(folder: Path, given: Path, special_tokens: str | None = None) -> Tokenizer:
    path = folder / "tokenizer.json"
    path.write_bytes(read_given(given, special_tokens))
    return open_tokenizer(path)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return stored(tmp_path_factory.mktemp("clip"), CLIP)


def bert_vocabulary(folder: Path) -> Path:
    """A WordPiece vocabulary of the corpus, as BERT's vocab.txt."""
    fast = FastTokenizer(models.WordPiece(unk_token="[UNK]"))
    fast.normalizer = normalizers.BertNormalizer(lowercase=True)
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=900, special_tokens=names, show_progress=False)
    fast.train_from_iterator(texts(4000)[:3000], trainer)
    vocabulary = fast.get_vocab()
    path = folder / "vocab.txt"
    path.write_text("".join(f"{name}\n" for name in sorted(vocabulary, key=vocabulary.__getitem__)))
    return path


def test_clip_gives_open_clip_s_ids_on_10_000_texts(clip: Tokenizer) -> None:
    theirs = open_clip.SimpleTokenizer()
    known = clip.vocabulary
    assert (known.size, known.bos_id, known.eos_id) == (
        theirs.vocab_size, theirs.sot_token_id, theirs.eot_token_id
    )  # fmt: skip
    some = texts(10_000)
    assert len(some) == 10_000
    wrong = [
        (text, found, theirs.encode(text))
        for text in some
        if (found := clip.encode(clean_text(text)))
        != theirs.encode(UNSEEN.sub("", open_clip.tokenizer.basic_clean(text)))
    ]
    assert not wrong, f"{len(wrong)} of {len(some)} texts differ: {wrong[:3]!a}"
    contexts = context(
        [np.array(clip.encode(t), np.int64) for t in some[:200]], 12, "bos_eos", known
    )
    assert contexts.tolist() == theirs(some[:200], context_length=12).tolist()


def test_a_special_token_s_name_in_a_caption_is_text(clip: Tokenizer) -> None:
    ids = clip.encode("a <end_of_text> b <start_of_text>")
    assert max(ids) < clip.vocabulary.bos_id


def test_merges_can_be_given_as_a_file_packed_or_not(clip: Tokenizer, tmp_path: Path) -> None:
    packed = clip_merges()
    plain = tmp_path / "merges.txt"
    plain.write_bytes(gzip.decompress(packed.read_bytes()))
    assert read_given(packed, None) == read_given(plain, None) == clip.file.read_bytes()


def test_clip_without_open_clip_names_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"open_clip_torch, or give --tokenizer PATH/bpe_simple"):
        read_given(CLIP, None)


def test_word_pieces_are_bert_s(tmp_path: Path) -> None:
    path = bert_vocabulary(tmp_path)
    ours = stored(tmp_path, path)
    theirs = BertTokenizer(str(path))
    for text in [*texts(6000), "[SEP] naïve [MASK]"]:
        plain = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert ours.encode(text) == plain, text
    assert (ours.vocabulary.pad_id, ours.vocabulary.bos_id, ours.vocabulary.eos_id) == (0, 3, 4)


def test_capitals_in_a_vocabulary_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nDog\ndog\n")
    assert stored(tmp_path, path).encode("Dog dog DOG") == [4, 5, 1]


def byte_bpe(*special: str) -> FastTokenizer:
    fast = FastTokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    fast.train_from_iterator(texts(4000)[:2000], trainer)
    return fast


def test_any_tokenizer_json_and_its_special_tokens(tmp_path: Path) -> None:
    theirs = byte_bpe("<nothing>", "<open>", "<close>")
    given = tmp_path / "given.json"
    theirs.save(str(given))
    with pytest.raises(ValueError, match=r"'<close>'.*--special-tokens PAD,BOS,EOS"):
        read_given(given, None)
    with pytest.raises(ValueError, match=r"lacks \['<shut>'\]"):
        read_given(given, "<nothing>,<open>,<shut>")
    ours = stored(tmp_path, given, "<nothing>,<open>,<close>")
    known = ours.vocabulary
    assert (known.pad_id, known.bos_id, known.eos_id) == (0, 1, 2)
    for text in texts(5000)[-1500:]:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids
    # Once it says its special ids it is kept byte for byte, as for the test split.
    assert read_given(ours.file, None) == ours.file.read_bytes()


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    packed = gzip.compress(b"#version: 0.2\n" + b"i n\nth e\n" * 9)
    for name, content, told in [
        ("a.json", b'{"no": 1}', "not a tokenizer.json"),
        ("b.model", b"\x00\x01\xff", "neither a SentencePiece model nor"),
        ("c.gz", b"\x1f\x8b\x00", "damaged"),
        ("blocks.gz", packed[:11] + b"\xff" * 20 + packed[31:], "damaged"),
        ("large.gz", gzip.compress(bytes(1 << 29), 1), "unpacks to more than"),
        ("apart.txt", b"#version: 0.2\nx\xc2\xa0 y\nth e\n", "not of one list"),
        ("d.txt", b"#version: 0.2\na b c\n", "not pairs"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=told):
            parse_tokenizer(tmp_path / name, read_given(tmp_path / name, None))


@pytest.mark.parametrize("kind", ["clip", "bert", "json"])
def test_auto_tokenizer_gives_our_ids_after_the_export(
    kind: str, clip: Tokenizer, tmp_path: Path
) -> None:
    if kind == "clip":
        tokenizer = clip
    elif kind == "bert":
        tokenizer = stored(tmp_path, bert_vocabulary(tmp_path))
    else:
        byte_bpe("<pad>", "<s>", "</s>").save(str(tmp_path / "given.json"))
        tokenizer = stored(tmp_path, tmp_path / "given.json")
    out = tmp_path / "export"
    out.mkdir()
    for name, content in tokenizer_files(tokenizer, "bos_eos", 12, []).items():
        (out / name).write_text(content)
    theirs = AutoTokenizer.from_pretrained(out)
    some = [*texts(4500)[::5], "", "a [SEP] b <s> c <end_of_text> !", "!!!", "x!"]
    got = theirs(some, padding="max_length", truncation=True, max_length=12)["input_ids"]
    ours = [np.array(tokenizer.encode(text), np.int64) for text in some]
    assert got == context(ours, 12, "bos_eos", tokenizer.vocabulary).tolist()


def test_a_dataset_records_the_tokenizer_and_a_second_split_takes_it(tmp_path: Path) -> None:
    source = plain_corpus(tmp_path / "corpus.parquet")
    manifest, _ = build_dataset(options(source, tmp_path / "a", tokenizer=CLIP))
    told = manifest.tokenizer
    assert (told.file, told.vocab_size, told.unk_id) == ("tokenizer.json", 49408, None)
    assert manifest.token_dtype == "<u2"
    dataset = Dataset(tmp_path / "a", "full")
    assert dataset.tokenizer().vocabulary == dataset.vocabulary
    captions = dataset.read_json(3)["captions"]
    assert dataset.read_ids(3).tolist() == open_clip.SimpleTokenizer().encode(captions["caption"])
    again = options(source, tmp_path / "b", tokenizer=tmp_path / "a" / "tokenizer.json")
    assert build_dataset(again)[0].tokenizer == told
    assert build_dataset(again)[0].tokenizer == told  # finished: the same request
    path = tmp_path / "b" / "manifest.json"
    changed = json.loads(path.read_text())
    changed["tokenizer"]["eos_id"] = 7
    path.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="eos_id=7"):
        Dataset(tmp_path / "b", "full").tokenizer()


@pytest.mark.parametrize("pattern", ["(a+)+$", r"(\s+)+x", r"(\w+\s?)*$", r"([a-z!]|[a-y!]+)*$"])
@pytest.mark.parametrize("part", ["pre_tokenizer", "normalizer"])
def test_a_pattern_that_backtracks_without_end_is_one_line(tmp_path, part, pattern, capfd):
    fast = FastTokenizer(models.BPE({"a": 0, "<pad>": 1, "<s>": 2, "</s>": 3}, []))
    if part == "normalizer":
        fast.normalizer = normalizers.Replace(Regex(pattern), "a")
    else:
        fast.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    fast.add_special_tokens(["<pad>", "<s>", "</s>"])
    fast.save(str(tmp_path / "tokenizer.json"))
    plain_corpus(tmp_path / "c.parquet", 4)
    asked = ["build", "--source", str(tmp_path / "c.parquet"), "--out", str(tmp_path / "out")]
    capfd.readouterr()
    assert main([*asked, "--tokenizer", str(tmp_path / "tokenizer.json")]) == 2
    error = capfd.readouterr().err.strip()
    assert "backtracks" in error and "--tokenizer" in error and "\n" not in error, error


def test_a_folder_is_no_tokenizer(tmp_path, capsys):
    asked = ["build", "--source", "x.parquet", "--out", str(tmp_path / "out")]
    assert main([*asked, "--tokenizer", str(tmp_path)]) == 2
    assert "is a folder; name tokenizer.json" in capsys.readouterr().err


def test_an_id_beyond_any_vocabulary_is_one_line(tmp_path):
    """The package and the embedding make room for every id below it."""
    fast = byte_bpe("<pad>", "<bos>", "<eos>")
    content = json.loads(fast.to_str())
    piece = next(iter(content["model"]["vocab"]))
    content["model"]["vocab"][piece] = 1 << 31
    given = tmp_path / "tokenizer.json"
    given.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"tokenizer\.json: .* has the id 2,147,483,648") as caught:
        read_json_tokenizer(given, given.read_bytes())
    assert "\n" not in str(caught.value)
