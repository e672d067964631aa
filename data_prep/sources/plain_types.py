"""Columns of Arrow files by what they mean: dictionaries and views as values, classes by name.

The schema and the rows of a file go through here, so that both say the same.
"""

import json
from typing import Any

import pyarrow as pa

LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
_VIEWS = {"list_view": pa.list_, "large_list_view": pa.large_list}


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """The columns as their rows will be. ValueError names those whose name occurs twice."""
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise ValueError(f"several columns have the same name, {twice}; rename all but one of each")
    names = _class_names(schema)
    fields = [(f.name, _named_type(_plain_type(f.type), names.get(f.name))) for f in schema]
    return pa.schema(fields, metadata=schema.metadata)


def plain_table(table: pa.Table, file: pa.Schema) -> pa.Table:
    """The rows as `plain_schema` tells of the schema of their file, which has all its metadata."""
    names = _class_names(file)
    for i, field in enumerate(table.schema):
        column = table.column(i)
        if (kind := _plain_type(field.type)) != field.type:
            if pa.types.is_nested(kind):  # not cast at all, or wrongly: pyarrow 26 loses list views
                column = pa.chunked_array([pa.array(column.to_pylist(), kind)])
            else:
                column = column.cast(kind, safe=False)
        if (named := _named_type(kind, names.get(field.name))) != kind:
            known = names[field.name]
            column = pa.chunked_array([pa.array(_name_each(column.to_pylist(), known), named)])
        if column is not table.column(i):
            table = table.set_column(i, field.name, column)
    return table


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
    if any(is_kind(kind) for is_kind in LISTS):
        plain = _plain_type(kind.value_type)
        if plain == kind.value_type:
            return kind
        return pa.large_list(plain) if pa.types.is_large_list(kind) else pa.list_(plain)
    if pa.types.is_struct(kind):
        fields = [(field.name, _plain_type(field.type)) for field in kind]
        if any(plain != field.type for (_, plain), field in zip(fields, kind, strict=True)):
            return pa.struct(fields)
    return kind


def _named_type(kind: pa.DataType, names: list[str] | None) -> pa.DataType:
    """Text in the place of the numbers of classes that have names."""
    if names is not None and pa.types.is_integer(kind):
        return pa.string()
    if names is not None and any(is_kind(kind) for is_kind in LISTS):
        inner = _named_type(kind.value_type, names)
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
