"""Which column holds the pictures and which the captions, where the user does not say."""

from typing import Any

import pyarrow as pa

from data_prep.sources.values import NUMBERS, is_list

DEFAULT_IMAGE_COLUMN = "image"
DEFAULT_CAPTION_COLUMN = "caption"
_DEFAULT_PATH_COLUMN = "file_name"  # as in the imagefolder of Hugging Face
# Names that corpora in the field use, in lower case.
_IMAGE_NAMES = ("image", "jpg", "jpeg", "png", "webp", "img", "picture", "image_bytes", "img_bytes")
_PATH_NAMES = (
    *("file_name", "filename", "file", "filepath", "file_path", "path", "image_path", "img_path"),
    *("image_file", "image_name", "image", "img", "picture"),
)
LINK_NAMES = ("url", "image_url", "img_url", "image_link", "link", "uri")
CAPTION_NAMES = ("caption", "text", "txt", "alt_text", "alt")
LIST_NAMES = ("captions", "sentences", "raw")  # of lists of captions, as COCO's five
TITLE_NAMES = ("title",)  # a caption only where nothing else is


def choose_image_column(
    source: str, schema: pa.Schema, asked: str | None, *, paths: bool = False
) -> str:
    """The column of encoded pictures. ValueError if there is none, or no single one to choose.

    With `paths`, the pictures may also be files that a column of text names.
    """
    usable = [f.name for f in schema if _holds_pictures(f.type) or (paths and holds_text(f.type))]
    found = ", ".join(f"{field.name}: {field.type}" for field in schema)
    if not usable:
        links = [field.name for field in schema if field.name.lower() in LINK_NAMES]
        if links:
            raise _links_alone(source, links[0], schema.names)
        raise ValueError(
            f"no column of {source} can hold encoded pictures (binary, or struct<bytes: binary, "
            f"path: string>), it has {found}; if one holds paths of pictures, name their folder "
            "with --image-root, or name a folder of NAME.jpg and NAME.txt with --source"
        )
    if asked is not None:
        if asked not in usable:
            raise ValueError(
                f"image_column={asked!r} is not a column of encoded pictures in {source}, which "
                f"has {found}; choose one of {usable} with --image-column"
            )
        return asked
    chosen = only_known(usable, DEFAULT_IMAGE_COLUMN, _IMAGE_NAMES)
    if chosen is None and paths:
        chosen = only_known(usable, _DEFAULT_PATH_COLUMN, _PATH_NAMES)
    if chosen is None:
        raise ValueError(
            f"which column of {source} holds the pictures? It has {found}; choose one of "
            f"{usable} with --image-column"
        )
    return chosen


def choose_path_column(source: str, record: dict[str, Any], asked: str | None) -> str:
    """The column of a table that names the files of the pictures. ValueError if none is clear."""
    names = list(record)
    chosen = asked if asked is not None else only_known(names, _DEFAULT_PATH_COLUMN, _PATH_NAMES)
    if chosen is None or chosen not in names:
        links = [name for name in names if name.lower() in LINK_NAMES]
        if links and asked is None:
            raise _links_alone(source, links[0], names)
        asks = "which column" if asked is None else f"image_column={asked!r}: which column"
        raise ValueError(
            f"{asks} of {source} holds the paths of the pictures? Its first line names {names}; "
            "choose one of these with --image-column"
        )
    if is_link(record[chosen]):
        raise _links_alone(source, chosen, names)
    return chosen


def refuse_links(source: str, first: list[str]) -> None:
    """ValueError for a table of links whose first line is a row already, not names."""
    if any(is_link(cell) for cell in first):
        raise _links_alone(source, "the first", ["no names: the first line is a row"])


def is_link(value: Any) -> bool:
    """Whether a value is a link to a picture elsewhere."""
    schemes = ("http://", "https://", "s3://")
    return isinstance(value, str) and value.lstrip('"').lower().startswith(schemes)


def _links_alone(source: str, column: str, names: list[str]) -> ValueError:
    """What to say of a table of links."""
    return ValueError(
        f"{source} is a table of links (column {column!r} of {names}), the pictures are not in it; "
        f"fetch them first: python -m data_prep download {source} DIR, and name DIR with --source"
    )


def choose_caption_column(schema: pa.Schema) -> str:
    """The column of the captions; the default name, for a later complaint, if none is clear."""
    if DEFAULT_CAPTION_COLUMN in schema.names:
        return DEFAULT_CAPTION_COLUMN
    texts = [field.name for field in schema if holds_text(field.type)]
    lists = [field.name for field in schema if holds_texts(field.type)]
    for names, known in (
        (texts, CAPTION_NAMES),
        (lists, (*LIST_NAMES, *CAPTION_NAMES)),
        (texts, TITLE_NAMES),
    ):
        familiar = [name for name in names if name.lower() in known]
        if familiar:
            return familiar[0] if len(familiar) == 1 else DEFAULT_CAPTION_COLUMN
    return DEFAULT_CAPTION_COLUMN


def list_columns(schema: pa.Schema) -> list[str]:
    """The columns that are lists of texts or numbers."""
    return [f.name for f in schema if is_list(f.type) and not holds_objects(f.type)]


def object_columns(schema: pa.Schema) -> list[str]:
    """The columns that hold objects, or lists of lists."""
    return [field.name for field in schema if holds_objects(field.type)]


def only_known(names: list[str], default: str, known: tuple[str, ...]) -> str | None:
    """The default name if it is there, or else the only well-known one."""
    if default in names:
        return default
    familiar = [name for name in names if name.lower() in known]
    return familiar[0] if len(familiar) == 1 else None


def _holds_pictures(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold encoded pictures."""
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def holds_texts(kind: pa.DataType) -> bool:
    """Whether a column of this type is lists of texts."""
    return is_list(kind) and holds_text(kind.value_type)


def holds_objects(kind: pa.DataType) -> bool:
    """Whether values of this type have parts of their own, which no text can stand for."""
    if is_list(kind):
        return is_list(kind.value_type) or holds_objects(kind.value_type)
    return kind != NUMBERS and pa.types.is_nested(kind)


def holds_text(kind: pa.DataType) -> bool:
    """Whether a column of this type is text."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
