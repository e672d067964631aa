"""The SQL expression that chooses rows."""

import polars as pl
import pyarrow as pa


def compile_where(where: str, source: str, schema: pa.Schema) -> pl.Expr:
    """The expression, checked against the columns. ValueError if it is not a row test."""
    try:
        expression = pl.sql_expr(where)
        names = columns_of(expression)
        missing = [name for name in names if name not in schema.names]
        if missing:
            raise ValueError(
                f"where={where!r} names {missing}, not among the columns {schema.names} of "
                f"{source}; change --where"
            )
        empty = pl.DataFrame(schema.empty_table().select(names))
        kind = empty.select(expression).dtypes[0]
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"where={where!r} is not understood: {error}; change --where") from error
    if kind != pl.Boolean or not names:
        raise ValueError(
            f"where={where!r} gives {kind} over columns {names}, needed true or false for each "
            "row; change --where"
        )
    return expression


def columns_of(expression: pl.Expr) -> list[str]:
    """The columns that an expression reads, each once."""
    return list(dict.fromkeys(expression.meta.root_names()))


def matching_rows(table: pa.Table, expression: pl.Expr) -> list[int]:
    """Numbers of the rows that pass; unknown counts as false, as in SQL."""
    frame = pl.DataFrame(table.select(columns_of(expression)))
    return frame.select(expression).to_series().arg_true().to_list()
