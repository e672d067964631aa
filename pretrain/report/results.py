"""The results: a table per evaluation set, after each stage, against chance."""

from pretrain.evaluation.task import shown_name
from pretrain.report import figures
from pretrain.report.run_folder import Record, Run
from pretrain.report.summary import Key, Result, by_key, collect_results, question, set_names
from pretrain.report.table import Cell, Table


def result_tables(run: Run) -> list[Table]:
    """The figures of every set, after each stage, at every token length evaluated."""
    results = collect_results(run)
    names = set_names(one for result in results for one in result.figures)
    return [_set_table(run, name, results) for name in names]


def _set_table(run: Run, name: str, results: list[Result]) -> Table:
    found = [(result, one) for result in results if (one := by_key(result.figures, name))]
    keys = list(dict.fromkeys(key for _, one in found for key in one))
    asked = list(dict.fromkeys(key[:2] for key in keys))
    columns = sorted(keys, key=lambda key: asked.index(key[:2]))  # those of a question together
    last = {key: one for _, own in found for key, one in own.items()}
    spans = [("", 1)]
    for task, part in asked:
        own = [key for key in columns if key[:2] == (task, part)]
        classes = figures.number(last[own[0]].get("classes"))
        count = "" if classes is None else f" ({figures.count(classes)})"
        spans.append((question(task, part) + count, len(own)))
    at_own = [result.record.get("tokens") in (result.after, None) for result, _ in found]
    final = max((place for place, is_own in enumerate(at_own) if is_own), default=None)
    rows: list[tuple[str, list[str | Cell]]] = [
        ("final" if place == final else "", [_label(run, result), *_cells(columns, one, "value")])
        for place, (result, one) in enumerate(found)
    ]
    rows.append(("chance", ["chance", *_cells(columns, last, "chance")]))
    if any("largest_class" in one for one in last.values()):
        # It is what always naming one class gets at the first place.
        only = {key: one for key, one in last.items() if key[2] == "top1"}
        rows.append(("chance", ["largest class", *_cells(columns, only, "largest_class")]))
    counts = {figures.count(one.get("n")) for one in last.values()}
    return Table(
        title=figures.readable(name),
        detail=f"n = {counts.pop()}" if len(counts) == 1 else "",
        spans=spans,
        head=["evaluated", *(shown_name(key[2]) for key in columns)],
        rows=rows,
    )


def _cells(columns: list[Key], found: dict[Key, Record], field: str) -> list[str | Cell]:
    """Empty where a column has no such figure or fact."""
    return [
        figures.points(found[key].get(field)) if field in found.get(key, {}) else ""
        for key in columns
    ]


def _label(run: Run, result: Result) -> Cell:
    """`after full, at reduced tokens (32 px, 16 + 8)`, with what the records tell."""
    tokens = result.record.get("tokens")
    announced = {str(stage.get("stage")): stage for stage in run.stages}.get(str(tokens), {})
    known = {**announced, **{k: v for k, v in result.record.items() if v is not None}}
    text = f"after {result.after}" + (f", at {tokens} tokens" if tokens is not None else "")
    sizes = []
    if known.get("image_px") is not None:
        sizes.append(f"{known['image_px']} px")
    lengths = [known[f] for f in ("image_tokens", "text_tokens") if known.get(f) is not None]
    if len(lengths) == 2:
        sizes.append(f"{lengths[0]} + {lengths[1]} tokens")
    return Cell(text, ", ".join(sizes))
