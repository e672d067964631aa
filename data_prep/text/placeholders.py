"""Captions that say nothing: the words that programs write where there is none, and markup."""

import re
import string

from data_prep.rejection import Reason

_WORDS = frozenset(
    ("", "null", "nan", "none", "nil", "n/a", "n.a", "na", "undefined", "no caption", "untitled")
)
# HTML's elements, so that <3 and a <start of something> stay.
_ELEMENTS = (
    "a|abbr|b|big|blockquote|body|br|button|center|cite|code|dd|del|div|dl|dt|em|embed|fieldset|"
    "figcaption|figure|font|footer|form|h[1-6]|head|header|hr|html|i|iframe|img|input|ins|label|li|"
    "link|main|mark|meta|nav|noscript|object|ol|option|p|picture|pre|q|s|script|section|select|"
    "small|source|span|strike|strong|style|sub|sup|svg|table|tbody|td|textarea|tfoot|th|thead|"
    "time|title|tr|u|ul|video"
)
_MARKUP = re.compile(rf"</?(?:{_ELEMENTS})(?:\s[^<>]*)?/?>|<!--", re.IGNORECASE)


def why_dropped(text: str) -> Reason | None:
    """Why a cleaned text says nothing; None if it may say something."""
    if text.strip(string.punctuation + " ").casefold() in _WORDS:
        return "caption_placeholder"
    return "caption_markup" if _MARKUP.search(text) else None
