"""The results: a table per evaluation set, after each stage, against chance."""

from pretrain.report import figures
from pretrain.report.run_folder import Record, Run
from pretrain.report.summary import (
    DIRECTIONS,
    Result,
    collect_results,
    objects,
    recall_ks,
    set_names,
)
from pretrain.report.table import Cell, Table


def result_tables(run: Run) -> list[Table]:
    """Retrieval and zero-shot of every set, after each stage, at every token length evaluated."""
    results = collect_results(run)
    names = set_names(result.sets for result in results)
    return [_set_table(run, name, [r for r in results if name in r.sets]) for name in names]


def _set_table(run: Run, name: str, results: list[Result]) -> Table:
    last = results[-1].sets[name]
    ks = recall_ks(result.sets[name] for result in results)
    fields = list(dict.fromkeys(f for r in results for f in objects(r.sets[name].get("zero_shot"))))
    shots = objects(last.get("zero_shot"))
    spans = [("", 1), *((label, len(ks)) for _, label in DIRECTIONS if ks)]
    head = ["evaluated", *(f"R@{k}" for _ in DIRECTIONS for k in ks)]
    for field in fields:
        classes = figures.count(objects(shots).get(field, {}).get("classes"))
        spans.append((f"zero-shot {figures.readable(field)} ({classes})", 2))
        head += ["top-1", "top-5"]
    own = [i for i, r in enumerate(results) if r.record.get("tokens") in (r.after, None)]
    rows = [
        ("final" if own and i == own[-1] else "", _result_row(run, result, name, ks, fields))
        for i, result in enumerate(results)
    ]
    rows.append(("chance", _chance_row(last, ks, fields)))
    if fields:
        largest: list[str | Cell] = ["largest class", *("" for _ in DIRECTIONS for _ in ks)]
        for field in fields:
            largest += [figures.points(shots.get(field, {}).get("largest_class")), ""]
        rows.append(("chance", largest))
    count = objects(last).get(DIRECTIONS[0][0], {}).get("n")
    detail = "" if count is None else f"{figures.count(count)} images"
    return Table(title=figures.readable(name), detail=detail, spans=spans, head=head, rows=rows)


def _result_row(
    run: Run, result: Result, name: str, ks: list[int], fields: list[str]
) -> list[str | Cell]:
    one = result.sets[name]
    row: list[str | Cell] = [_label(run, result)]
    for direction, _ in DIRECTIONS:
        scores = objects(one).get(direction, {})
        row += [figures.points(scores.get(f"r@{k}")) for k in ks]
    for field in fields:
        scores = objects(one.get("zero_shot")).get(field, {})
        row += [figures.points(scores.get("top1")), figures.points(scores.get("top5"))]
    return row


def _chance_row(one: Record, ks: list[int], fields: list[str]) -> list[str | Cell]:
    row: list[str | Cell] = ["chance"]
    for direction, _ in DIRECTIONS:
        scores = objects(one).get(direction, {})
        row += [figures.points(scores.get(f"chance_r@{k}")) for k in ks]
    for field in fields:
        classes = figures.number(objects(one.get("zero_shot")).get(field, {}).get("classes"))
        for k in (1, 5):
            row.append(figures.points(min(1.0, k / classes) if classes else None))
    return row


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
