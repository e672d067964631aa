"""Which column holds the pictures and which the captions, where the user does not say."""

import pyarrow as pa

DEFAULT_IMAGE_COLUMN = "image"
DEFAULT_CAPTION_COLUMN = "caption"
# Names that corpora in the field use, in lower case.
IMAGE_NAMES = ("image", "jpg", "jpeg", "png", "webp", "img", "picture", "image_bytes", "img_bytes")
CAPTION_NAMES = ("caption", "text", "txt", "alt_text", "alt")


def choose_image_column(source: str, schema: pa.Schema, asked: str | None) -> str:
    """The column of encoded pictures. ValueError if there is none, or no single one to choose."""
    usable = [field.name for field in schema if holds_pictures(field.type)]
    found = ", ".join(f"{field.name}: {field.type}" for field in schema)
    if not usable:
        raise ValueError(
            f"no column of {source} can hold encoded pictures (binary, or struct<bytes: binary, "
            f"path: string>), it has {found}; get the pictures into it (img2dataset: "
            "--output_format parquet), or name a folder of NAME.jpg and NAME.txt with --source"
        )
    if asked is not None:
        if asked not in usable:
            raise ValueError(
                f"image_column={asked!r} is no column of encoded pictures in {source}, which has "
                f"{found}; choose one of {usable} with --image-column"
            )
        return asked
    chosen = only_known(usable, DEFAULT_IMAGE_COLUMN, IMAGE_NAMES)
    if chosen is None:
        raise ValueError(
            f"which column of {source} holds the pictures? It has {found}; choose one of "
            f"{usable} with --image-column"
        )
    return chosen


def choose_caption_column(schema: pa.Schema) -> str:
    """The column of the captions; the default name, for a later complaint, if none is clear."""
    if DEFAULT_CAPTION_COLUMN in schema.names:
        return DEFAULT_CAPTION_COLUMN
    texts = [field.name for field in schema if holds_text(field.type)]
    return only_known(texts, DEFAULT_CAPTION_COLUMN, CAPTION_NAMES) or DEFAULT_CAPTION_COLUMN


def only_known(names: list[str], default: str, known: tuple[str, ...]) -> str | None:
    """The default name if it is there, or else the only well-known one."""
    if default in names:
        return default
    familiar = [name for name in names if name.lower() in known]
    return familiar[0] if len(familiar) == 1 else None


def holds_pictures(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold encoded pictures."""
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def holds_text(kind: pa.DataType) -> bool:
    """Whether a column of this type is text."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
