"""Captions come out clean, named, and absent where a column is empty."""

import random

import ftfy
import pytest

from data_prep.rejection import RejectedError
from data_prep.text.captions import CaptionOptions, clean_text, make_captions, parse_templates

COLUMNS = ["caption", "keywords", "year"]


def make(caption: tuple[str, ...], row: dict, **more: bool) -> dict[str, str]:
    templates = parse_templates(CaptionOptions(caption=list(caption), **more), COLUMNS)
    return make_captions(templates, {**dict.fromkeys(COLUMNS), **row}, 100)


@pytest.mark.parametrize(
    ("dirty", "clean"),
    [
        ("  a \t dog\n\nruns ", "a dog runs"),
        ("caf\u0065\u0301", "café"),  # NFD to NFC
        ("schÃ¶n", "schön"),  # UTF-8 once read as Latin-1
        ("Tom &amp; Jerry", "Tom & Jerry"),
        ("1 &amp;lt; 2", "1 < 2"),  # escaped twice, as crawled alt texts often are
        ("a\u00a0b\u3000c", "a b c"),
        ("\x00\x01dog\x1b[31m", "dog"),
        ("東京タワー 😀", "東京タワー 😀"),
        ("a\u200b dog\u202e runs\u2066\ufeff", "a dog runs"),
        ("\u200fcat&#8203;s, do\u00adg\u2060\u200d", "cats, dog"),
        ("👩\u200d🚒 می\u200cخواهم", "👩\u200d🚒 می\u200cخواهم"),  # they join here
    ],
)
def test_text_is_cleaned(dirty: str, clean: str) -> None:
    assert clean_text(dirty) == clean
    assert clean_text(clean) == clean


def test_what_is_not_looked_at_has_nothing_to_mend() -> None:
    """Plain texts pass by ftfy: it would change none of them."""
    draws = random.Random(0)
    for _ in range(3000):
        text = "".join(chr(draws.randrange(32, 127)) for _ in range(draws.randrange(60)))
        if "&" not in text:
            assert clean_text(text) == " ".join(ftfy.fix_text(text).split()), repr(text)


def test_templates_name_captions_in_order() -> None:
    made = make(
        ("label={caption}", "both={caption}, {keywords}", "fixed={year}: {{a}} {caption}"),
        {"caption": "a dog", "keywords": ["pet", "", "animal"], "year": 1999},
    )
    assert list(made.items()) == [
        ("label", "a dog"),
        ("both", "a dog, pet, animal"),
        ("fixed", "1999: {a} a dog"),
    ]


@pytest.mark.parametrize("empty", [None, "", "  ", []])
def test_a_caption_with_an_empty_column_is_absent(empty: object) -> None:
    made = make(
        ("label={caption}", "both={caption}, {keywords}"), {"caption": "x", "keywords": empty}
    )
    assert made == {"label": "x"}


def test_zero_is_not_empty() -> None:
    assert make(("label={year}",), {"year": 0}) == {"label": "0"}


NOTHING = ["NULL", "nan", "None", "N/A", " <NA> ", "#N/A", "-", "...", "\u200bnull.", "&lt;br&gt;"]
NOTHING += [
    "\u2026",
    "\u2014",
    "\u3002",
    "\u00bf?",
    "\uff5e",
    "N / A",
    "None, None",
    "\u201cnone\u201d",
    "nan; n.a.",
]
MARKED = ["<p>a dog</p>", "a <b>big</b> dog", '<img src="x.jpg" alt="a dog">', "dog<br/>", "<!-- x"]
MARKED += ["<input disabled> x", "a <br clear=all> b", "<td nowrap>x", "x</p >"]
SAYING = ["none of the dogs", "I <3 dogs", "a < b > c", "Nan Goldin", "<dog>", "7", "😀", "東京"]
SAYING += ["x <b and y> z", "Nana", "na na na", "none of it, none", "<I am> here", "a <a = b> c"]


@pytest.mark.parametrize("text", [*NOTHING, *MARKED, *SAYING])
def test_what_says_nothing_is_dropped_where_asked_for(text: str) -> None:
    kept = clean_text(text)
    assert make(("x={caption}",), {"caption": text}) == {"x": kept}
    drop = {"drop_placeholders": True}
    row = {"caption": text, "keywords": ["a", text, "b"], "year": 1999}
    asked = ("x={caption}", "y=in {year}: {keywords}", "z=a {caption}", "w={year}")
    found = make(asked, row, **drop)
    if text in SAYING:
        assert found["x"] == kept and found["y"] == f"in 1999: a, {kept}, b"
        return
    assert found == {"y": "in 1999: a, b", "w": "1999"}
    templates = parse_templates(
        CaptionOptions(caption=["k={keywords}"], **drop), COLUMNS, lists=["keywords"]
    )
    assert make_captions(templates, row, 100) == {"k": "a", "k_2": "b"}
    reason = "caption_markup" if text in MARKED or "&" in text else "caption_placeholder"
    with pytest.raises(RejectedError, match=reason):
        make(("x={caption}",), row, **drop)


def test_braces_in_a_column_are_text() -> None:
    assert make(("label={caption}",), {"caption": "{year}"}) == {"label": "{year}"}


def test_no_caption_left_is_a_rejection() -> None:
    with pytest.raises(RejectedError, match="caption_empty"):
        make(("label={caption}",), {"caption": None})


@pytest.mark.parametrize(
    "wrong",
    [
        ("{caption}",),
        ("=x",),
        ("my label={caption}",),
        ("label=no column",),
        ("label={nothing}",),
        ("label={caption[0]}",),
        ("label={caption.x}",),
        ("label={caption:>5}",),
        ("label={caption!r}",),
        ("label={}",),
        ("label={caption",),
        ("a={caption}", "a={keywords}"),
    ],
)
def test_wrong_templates_name_the_option(wrong: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="--caption"):
        parse_templates(CaptionOptions(caption=list(wrong)), COLUMNS)
