"""Captions of a row: templates over its columns, cleaned."""

import html
import string
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

import ftfy

from data_prep.rejection import RejectedError
from data_prep.sources.values import text_of
from pretrain.base.checks import check_positive

# A caption may have at most 65,535 tokens (the index counts them in 16 bits). A character can
# become several tokens (bytes, compatibility decomposition), so stay far below.
CAPTION_CHARS_CAP = 16_000


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

    def __post_init__(self) -> None:
        if not 1 <= self.caption_max_chars <= CAPTION_CHARS_CAP:
            raise ValueError(
                f"caption_max_chars={self.caption_max_chars}: choose 1 to {CAPTION_CHARS_CAP}"
            )
        check_positive({"--captions-per-list": self.captions_per_list})


@dataclass(frozen=True, kw_only=True)
class CaptionTemplate:
    """A caption's name, its template and the columns that the template reads."""

    name: str
    template: str
    columns: tuple[str, ...]
    entry: int | None = None  # of the column's list, without its empty entries; None: not of one


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
    for text in options.caption or [f"caption={{{default}}}"]:
        name, equals, template = text.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"caption={text!r}: write --caption NAME=TEMPLATE, NAME a plain word")
        used = template_columns(template)
        missing = [column for column in used if column not in columns]
        if missing or not used:
            raise ValueError(
                f"caption={text!r} uses columns {list(used)}, the corpus has {columns}; "
                "change --caption NAME=TEMPLATE"
            )
        if nested := [column for column in used if column in objects]:
            plain = [column for column in columns if column not in objects]
            raise ValueError(
                f"caption={text!r}: {nested} hold objects, or lists of lists, in some row, no "
                f"texts; use columns of {plain} with --caption NAME=TEMPLATE, or give the part "
                "that is meant a column of its own"
            )
        made = [CaptionTemplate(name=name, template=template, columns=used)]
        if options.captions_per_list is not None and is_list(template, used, lists):
            made = [
                replace(made[0], name=name if entry == 0 else f"{name}_{entry + 1}", entry=entry)
                for entry in range(options.captions_per_list)
            ]
        for one in made:
            if one.name in [other.name for other in templates]:
                raise ValueError(f"caption name {one.name!r} given twice; rename one --caption")
            templates.append(one)
    return templates


def is_list(template: str, columns: tuple[str, ...], lists: Collection[str]) -> bool:
    """Whether a template is a column of lists and nothing else."""
    return len(columns) == 1 and template == f"{{{columns[0]}}}" and columns[0] in lists


def template_columns(template: str) -> tuple[str, ...]:
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

    RejectedError: caption_not_utf8, caption_too_long; caption_empty if none is left.
    """
    captions: dict[str, str] = {}
    entries: dict[str, list[str]] = {}  # of each list's column, cleaned
    for template in templates:
        if template.entry is not None:
            (column,) = template.columns
            if column not in entries:
                entries[column] = list_entries(row[column])
            found = entries[column][template.entry : template.entry + 1]
            if found and len(found[0]) > max_chars:
                raise RejectedError("caption_too_long")
            if found:
                captions[template.name] = found[0]
            continue
        values = {column: field_text(row[column]) for column in template.columns}
        if not all(values.values()):
            continue
        text = clean_text(template.template.format_map(values))
        if len(text) > max_chars:
            raise RejectedError("caption_too_long")
        if text:
            captions[template.name] = text
    if not captions:
        raise RejectedError("caption_empty")
    return captions


def list_entries(value: Any) -> list[str]:
    """The entries of a list that are not empty, cleaned."""
    if isinstance(value, bytes):  # a list of which no one can read a text
        raise RejectedError("caption_not_utf8")
    cleaned = [clean_text(field_text(item)) for item in value or []]
    return [text for text in cleaned if text]


def entries_left_out(templates: list[CaptionTemplate], row: dict[str, Any]) -> int:
    """How many entries of the row's lists no template takes."""
    taken: dict[str, int] = {}
    for template in templates:
        if template.entry is not None:
            (column,) = template.columns
            taken[column] = max(taken.get(column, 0), template.entry + 1)
    long = {name: count for name, count in taken.items() if len(row[name] or []) > count}
    return sum(max(len(list_entries(row[name])) - count, 0) for name, count in long.items())


def field_text(value: Any) -> str:
    """A column's value as text: lists joined by commas, None as nothing."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        raise RejectedError("caption_not_utf8")
    if isinstance(value, list):
        return ", ".join(text for text in map(field_text, value) if text)
    return text_of(value).strip()


def field_texts(value: Any) -> str | list[str]:
    """A column's value as texts that JSON holds: those of its entries if it is a list.

    RejectedError: caption_not_utf8.
    """
    return [field_text(item) for item in value] if isinstance(value, list) else field_text(value)


def clean_text(text: str) -> str:
    """Text with mojibake and HTML entities mended, NFC, single spaces, no ends of white space.

    Source: CLIP `basic_clean` and `whitespace_clean` (openai/CLIP, simple_tokenizer.py), which
    unescapes twice because crawled alt texts often are escaped twice; NFC is added here.
    """
    if text.isascii() and text.isprintable() and "&" not in text:
        return " ".join(text.split())  # nothing to mend: a tenth of the time of a small picture
    mended = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(unicodedata.normalize("NFC", mended).split())
