"""Columns of Arrow files by what they mean: dictionaries and views as values, classes by name.

The schema and the rows of a file go through here, so that both say the same.
"""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.sources.values import is_list

_VIEWS = {"list_view": pa.list_, "large_list_view": pa.large_list}


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """The columns as their rows will be. ValueError names those whose name occurs twice."""
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise ValueError(f"several columns have the same name, {twice}; rename all but one of each")
    names = _class_names(schema)
    fields = [(f.name, _name_type(_plain_type(f.type), names.get(f.name))) for f in schema]
    return pa.schema(fields, metadata=schema.metadata)


def merge_types(known: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The type of a column of two files. ValueError if its values are not of one kind in both.

    One without any value fits all. Numbers are of one kind, and so are texts, however stored.
    """
    if pa.types.is_null(known) or known == other:
        return other
    if pa.types.is_null(other):
        return known
    if is_list(known) and is_list(other):
        merged = merge_types(known.value_type, other.value_type)
        return known if merged == known.value_type else other
    if _kind_of(known) != _kind_of(other):
        raise ValueError(f"{other} beside {known}")
    return known


def _kind_of(kind: pa.DataType) -> str:
    """What values of a type have in common with those of others."""
    kinds = {
        "numbers": (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal),
        "text": (pa.types.is_string, pa.types.is_large_string),
        "bytes": (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary),
        "times": (pa.types.is_timestamp,),
    }
    if pa.types.is_struct(kind):  # of its own names, but for those of pictures
        return str([name for name in ("bytes", "path") if kind.get_field_index(name) >= 0])
    of = (name for name, tests in kinds.items() if any(is_kind(kind) for is_kind in tests))
    return next(of, str(kind))


def plain_table(table: pa.Table, file: pa.Schema, types: pa.Schema | None = None) -> pa.Table:
    """The rows as `plain_schema` tells of the schema of their file, which has all its metadata.

    `types`, of all files: a column that has none in this one has that of the others.
    """
    names = _class_names(file)
    for i, field in enumerate(table.schema):
        column = table.column(i)
        kind = _plain_type(field.type)
        if pa.types.is_null(kind) and types is not None:
            kind = types.field(field.name).type
        if kind != field.type:
            column = pa.chunked_array([_plain_array(one, kind) for one in column.chunks], kind)
        if (named := _name_type(kind, names.get(field.name))) != kind:
            known = names[field.name]
            column = pa.chunked_array([pa.array(_name_each(column.to_pylist(), known), named)])
        if column is not table.column(i):
            table = table.set_column(i, field.name, column)
    return table


def _plain_array(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """The values in their usual type. Part by part, not by Python, which stumbles over text that is
    no UTF-8, nor by a cast of the whole: pyarrow 26 has none, or loses list views."""
    if pa.types.is_null(array.type):
        return pa.nulls(len(array), kind)
    if array.type == kind or not pa.types.is_nested(kind):
        return array.cast(kind, safe=False)
    if pa.types.is_struct(kind):
        parts = [_plain_array(pc.struct_field(array, [i]), f.type) for i, f in enumerate(kind)]
        return pa.StructArray.from_arrays(parts, fields=list(kind), mask=array.is_null())
    large = pa.types.is_large_list(kind)
    ends = np.cumsum(pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False))
    offsets = pa.array([0, *ends], pa.int64() if large else pa.int32())
    items = _plain_array(array.flatten(), kind.value_type)
    make = pa.LargeListArray if large else pa.ListArray
    return make.from_arrays(offsets, items, type=kind, mask=array.is_null())


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """The usual type of the same values."""
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary_view(kind):
        return pa.large_binary()
    if (make := _VIEWS.get(str(kind).partition("<")[0])) is not None:
        return make(_plain_type(kind.value_type))
    if is_list(kind):
        plain = _plain_type(kind.value_type)
        if plain == kind.value_type:
            return kind
        return pa.large_list(plain) if pa.types.is_large_list(kind) else pa.list_(plain)
    if pa.types.is_struct(kind):
        fields = [(field.name, _plain_type(field.type)) for field in kind]
        if any(plain != field.type for (_, plain), field in zip(fields, kind, strict=True)):
            return pa.struct(fields)
    return kind


def _name_type(kind: pa.DataType, names: list[str] | None) -> pa.DataType:
    """Text in the place of the numbers of classes that have names."""
    if names is not None and pa.types.is_integer(kind):
        return pa.string()
    if names is not None and is_list(kind):
        inner = _name_type(kind.value_type, names)
        return kind if inner == kind.value_type else pa.list_(inner)
    return kind


def _name_each(value: Any, names: list[str]) -> Any:
    """The names of numbers, in lists too; null for one that has none, as -1."""
    if isinstance(value, list):
        return [_name_each(item, names) for item in value]
    return names[value] if value is not None and 0 <= value < len(names) else None


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """The names of the classes of each column that Hugging Face `datasets` calls a ClassLabel."""
    try:
        told = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = told.get("info", {}).get("features", {})
        found = {name: _names_of(feature) for name, feature in features.items()}
    except (ValueError, AttributeError):  # not as `datasets` writes it
        return {}
    return {name: names for name, names in found.items() if names is not None}


def _names_of(feature: Any) -> list[str] | None:
    """The names of a feature that is a class or a list of classes."""
    if isinstance(feature, list) and len(feature) == 1:
        return _names_of(feature[0])
    if not isinstance(feature, dict):
        return None
    if feature.get("_type") == "ClassLabel":
        return feature.get("names")
    return _names_of(feature["feature"]) if "feature" in feature else None
