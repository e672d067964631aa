"""Captions of a row: templates over its columns, cleaned."""

import html
import re
import string
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import ftfy

from data_prep.rejection import Reason, RejectedError
from data_prep.sources.values import text_of
from data_prep.text.placeholders import why_dropped
from pretrain.base.checks import check_positive

# A caption may have at most 65,535 tokens (the index counts them in 16 bits). A character can
# become several tokens (bytes, compatibility decomposition), so stay far below.
_CAPTION_CHARS_CAP = 16_000
_VALUE_CHARS_CAP = 1_000_000  # of a column's value, which a caption may take a part of
# Zero width, soft hyphens, direction marks. The joiners (200c, 200d) stay where Persian, Indic
# scripts and emoji need them, which is between characters beyond ASCII.
UNSEEN = re.compile(
    r"[\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff]"
    r"|(?<![^\x00-\x7f\s])[\u200c\u200d]+|[\u200c\u200d]+(?![^\x00-\x7f\s])"
)


@dataclass(frozen=True, kw_only=True)
class CaptionOptions:
    """How captions are made"""

    caption: list[str] = field(default_factory=list)
    """NAME=TEMPLATE, repeatable: a named caption from columns, e.g.
    "group=a drawing of {caption}, in the group {group}". It is absent for a row in which one of
    its columns is empty. NAME={column} of a column of lists gives NAME, NAME_2, … Default: the
    column `caption` as it is, or the only one with another well-known name (text, txt, alt_text,
    alt), or that of lists (captions, sentences, raw)."""
    captions_per_list: int | None = 5
    """Captions that NAME={column} takes of a list, the empty entries left out; what is beyond is
    counted. Null: a list is one caption, joined by commas."""
    caption_max_chars: int = 4096
    """A row with a longer caption is rejected (caption_too_long)."""
    drop_placeholders: bool = False
    """Leave out captions, entries of lists and columns of templates that say nothing: NULL, nan,
    None, N/A, punctuation alone (caption_placeholder), or with HTML tags (caption_markup)."""

    def __post_init__(self) -> None:
        if not 1 <= self.caption_max_chars <= _CAPTION_CHARS_CAP:
            raise ValueError(
                f"caption_max_chars={self.caption_max_chars}: choose 1 to {_CAPTION_CHARS_CAP}"
            )
        check_positive({"--captions-per-list": self.captions_per_list})


@dataclass(frozen=True, kw_only=True)
class CaptionTemplate:
    """A caption's name, its template and the columns that the template reads."""

    name: str
    template: str
    columns: tuple[str, ...]
    entry: int | None = None  # of the column's list, without its empty entries; None: not of one
    drop: bool = False  # texts that say nothing


def parse_templates(
    options: CaptionOptions,
    columns: list[str],
    default: str = "caption",
    lists: Collection[str] = (),
    objects: Collection[str] = (),
) -> list[CaptionTemplate]:
    """Caption templates in the order given, or the column `default` as it is.

    One that is a column of `lists` alone becomes captions_per_list of them, NAME, NAME_2, ….
    ValueError names the caption and the columns, and those of `objects`: no text stands for one.
    """
    templates: list[CaptionTemplate] = []
    drop = options.drop_placeholders
    for text in options.caption or [f"caption={{{default}}}"]:
        name, equals, template = text.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"caption={text!r}: write --caption NAME=TEMPLATE, NAME a plain word")
        used = _template_columns(template)
        missing = [column for column in used if column not in columns]
        if missing or not used:
            raise ValueError(
                f"caption={text!r} uses columns {list(used)}, the corpus has {columns}; "
                "change --caption NAME=TEMPLATE"
            )
        if nested := [column for column in used if column in objects]:
            plain = [column for column in columns if column not in objects]
            raise ValueError(
                f"caption={text!r}: {nested} hold objects, or lists of lists, in some row, not "
                f"texts; use columns of {plain} with --caption NAME=TEMPLATE, or put the part "
                "that you want into a column of its own"
            )
        made = [CaptionTemplate(name=name, template=template, columns=used, drop=drop)]
        if options.captions_per_list is not None and _is_list(template, used, lists):
            made = [
                replace(made[0], name=name if entry == 0 else f"{name}_{entry + 1}", entry=entry)
                for entry in range(options.captions_per_list)
            ]
        for one in made:
            if one.name in [other.name for other in templates]:
                raise ValueError(f"caption name {one.name!r} given twice; rename one --caption")
            templates.append(one)
    return templates


def _is_list(template: str, columns: tuple[str, ...], lists: Collection[str]) -> bool:
    """Whether a template is a column of lists and nothing else."""
    return len(columns) == 1 and template == f"{{{columns[0]}}}" and columns[0] in lists


def _template_columns(template: str) -> tuple[str, ...]:
    """Columns named by a template: plain {name} fields only. ValueError for anything else."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"caption template {template!r}: {error}; change --caption") from error
    names: list[str] = []
    for _, name, spec, conversion in parts:
        if name is None:
            continue
        # Attribute access, indexing and formats are refused: they can fail on a single row.
        if not name or spec or conversion or "." in name or "[" in name:
            raise ValueError(
                f"caption template {template!r}: write fields as {{column}}, without format, "
                "index or attribute; change --caption"
            )
        if name not in names:
            names.append(name)
    return tuple(names)


def make_captions(
    templates: list[CaptionTemplate], row: dict[str, Any], max_chars: int
) -> dict[str, str]:
    """Cleaned captions by name, in template order, without the absent ones.

    RejectedError: caption_not_utf8, caption_too_long; if none is left, why the first was dropped,
    or caption_empty.
    """
    captions: dict[str, str] = {}
    dropped: list[Reason] = []
    entries: dict[str, list[str]] = {}  # of each column, without those that are dropped
    for template in templates:
        for column in template.columns:
            if column not in entries:
                entries[column] = _column_entries(row[column], dropped if template.drop else None)
        if template.entry is not None:
            cleaned = filter(None, map(clean_text, entries[template.columns[0]]))
            text = next(islice(cleaned, template.entry, None), "")
        else:
            values = {column: ", ".join(entries[column]) for column in template.columns}
            whole = template.template.format_map(values) if all(values.values()) else ""
            text = clean_text(whole)
        if len(text) > max_chars:
            raise RejectedError("caption_too_long")
        if text:
            captions[template.name] = text
    if not captions:
        raise RejectedError(dropped[0] if dropped else "caption_empty")
    return captions


def _column_entries(value: Any, dropped: list[Reason] | None) -> list[str]:
    """The texts of a column's value, one if it is no list, without the empty ones.

    With `dropped`, those that say nothing are left out, and their reasons added to it.
    RejectedError: caption_not_utf8.
    """
    items = value if isinstance(value, list) else [value]
    texts = [text for text in map(_field_text, items) if text]
    if dropped is None:
        return texts
    reasons = [why_dropped(clean_text(text)) for text in texts]
    dropped += [reason for reason in reasons if reason is not None]
    return [text for text, reason in zip(texts, reasons, strict=True) if reason is None]


def entries_left_out(templates: list[CaptionTemplate], row: dict[str, Any]) -> int:
    """How many entries of the row's lists no template takes."""
    taken: dict[str, CaptionTemplate] = {}  # the last of each column
    for template in templates:
        if template.entry is not None:
            taken[template.columns[0]] = template
    left_out = 0
    for name, last in taken.items():
        count = (last.entry or 0) + 1
        if len(row[name] or []) > count:
            texts = map(clean_text, _column_entries(row[name], [] if last.drop else None))
            left_out += max(sum(map(bool, texts)) - count, 0)
    return left_out


def _field_text(value: Any) -> str:
    """A value as text, None as nothing. RejectedError: caption_not_utf8, caption_too_long."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        raise RejectedError("caption_not_utf8")
    text = text_of(value)
    if len(text) > _VALUE_CHARS_CAP:  # to clean it would cost seconds
        raise RejectedError("caption_too_long")
    return text.strip()


def field_texts(value: Any) -> str | list[str]:
    """A column's value as texts that JSON holds: those of its entries if it is a list.

    RejectedError: caption_not_utf8.
    """
    return [_field_text(item) for item in value] if isinstance(value, list) else _field_text(value)


def clean_text(text: str) -> str:
    """Text with mojibake and HTML entities mended, NFC, single spaces, no ends of white space, and
    without characters that are not seen.

    Source: CLIP `basic_clean` and `whitespace_clean` (openai/CLIP, simple_tokenizer.py), which
    unescapes twice because crawled alt texts often are escaped twice; NFC is added here.
    """
    if text.isascii() and text.isprintable() and "&" not in text:
        return " ".join(text.split())  # nothing to mend: a tenth of the time of a small picture
    mended = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(unicodedata.normalize("NFC", UNSEEN.sub("", mended)).split())
