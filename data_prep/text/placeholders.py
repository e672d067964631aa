"""Captions that say nothing: the words that programs write where there is none, and markup."""

import re
import string
import unicodedata
from collections import Counter

from data_prep.rejection import Reason

_DROPPED: tuple[Reason, ...] = ("caption_placeholder", "caption_markup")
# Between commas, whatever separated them; no word, too.
_WORD = "(?:null|nan|none|nil|n[ ,]?a|undefined|no caption|untitled)"
_WORDS = re.compile(f"(?:{_WORD}(?:,{_WORD})*)?")
# HTML's elements, so that <3 and a <start of something> stay.
_ELEMENTS = (
    "a|abbr|b|big|blockquote|body|br|button|center|cite|code|dd|del|div|dl|dt|em|embed|fieldset|"
    "figcaption|figure|font|footer|form|h[1-6]|head|header|hr|html|i|iframe|img|input|ins|label|li|"
    "link|main|mark|meta|nav|noscript|object|ol|option|p|picture|pre|q|s|script|section|select|"
    "small|source|span|strike|strong|style|sub|sup|svg|table|tbody|td|textarea|tfoot|th|thead|"
    "time|title|tr|u|ul|video"
)
# Of attributes the first one must be one, so that <b and c> stays.
_ATTRIBUTE = (
    r"[a-z@:][\w:.-]*\s*=|(?:async|autoplay|checked|compact|controls|defer|disabled|hidden|ismap|"
    r"loop|multiple|muted|nohref|noshade|nowrap|open|readonly|required|reversed|selected)(?=[\s/>])"
)
_MARKUP = re.compile(rf"</?(?:{_ELEMENTS})(?:\s+(?:{_ATTRIBUTE})[^<>]*)?\s*/?>|<!--", re.IGNORECASE)


def why_dropped(text: str) -> Reason | None:
    """Why a cleaned text says nothing; None if it may say something."""
    if _WORDS.fullmatch(_words(text)):
        return "caption_placeholder"
    return "caption_markup" if _MARKUP.search(text) else None


def say_dropped(rejected: Counter[str]) -> str:
    """What to add where no caption is left: how many rows said nothing; nothing if none did."""
    if dropped := sum(rejected[reason] for reason in _DROPPED):
        return (
            f"; the captions of {dropped:,} rows are placeholders or markup: "
            "--drop-placeholders false keeps them"
        )
    return ""


def _words(text: str) -> str:
    """The words of a text in lower case, a comma for all punctuation between two of them."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    marked = "".join("," if _is_punctuation(one) else one for one in plain)
    return re.sub(r"\s*,[\s,]*", ",", marked).strip(", ")


def _is_punctuation(character: str) -> bool:
    """Whether it is of ASCII's punctuation or Unicode's."""
    return character in string.punctuation or unicodedata.category(character).startswith("P")
