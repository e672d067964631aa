"""The results section: a table per evaluation set, after each stage, against chance."""

from pretrain.report import figures
from pretrain.report.markup import Html, element, join, paragraph, table
from pretrain.report.run_folder import EVALUATION_FILE, Record, Run
from pretrain.report.summary import (
    DIRECTIONS,
    Result,
    collect_results,
    objects,
    recall_ks,
    set_names,
)


def result_section(run: Run) -> Html:
    """Retrieval and zero-shot of every set, after each stage, at every token length evaluated."""
    title = element("h2", None, "Results")
    results = collect_results(run)
    names = set_names(result.sets for result in results)
    if not names:
        missing = f"No evaluation is there yet, neither in {EVALUATION_FILE} nor in the metrics."
        return join([title, paragraph(missing, kind="missing")])
    parts: list[object] = [title]
    if run.evaluation is None:
        parts.append(
            paragraph(
                f"There is no {EVALUATION_FILE} yet; these are the latest evaluations during "
                "training.",
                kind="missing",
            )
        )
    parts.append(
        paragraph(
            "In percent. R@k: the share of queries whose right answer is among the k best; "
            "zero-shot: the number of classes in brackets. The tinted row is the finished model "
            "at its own token lengths.",
            kind="note",
        )
    )
    for name in names:
        parts.append(_set_table(run, name, [r for r in results if name in r.sets]))
    return join(parts)


def _set_table(run: Run, name: str, results: list[Result]) -> Html:
    last = results[-1].sets[name]
    ks = recall_ks(result.sets[name] for result in results)
    fields = list(dict.fromkeys(f for r in results for f in objects(r.sets[name].get("zero_shot"))))
    shots = objects(last.get("zero_shot"))
    spans: list[object] = ["", *((label, len(ks)) for _, label in DIRECTIONS if ks)]
    head: list[object] = ["evaluated", *(f"R@{k}" for _ in DIRECTIONS for k in ks)]
    for field in fields:
        classes = figures.count(objects(shots).get(field, {}).get("classes"))
        spans.append((f"zero-shot {figures.readable(field)} ({classes})", 2))
        head += ["top-1", "top-5"]
    own = [i for i, r in enumerate(results) if r.record.get("tokens") in (r.after, None)]
    rows = [_result_row(run, result, name, ks, fields) for result in results]
    kinds = ["final" if own and i == own[-1] else "" for i in range(len(rows))]
    rows.append(_chance_row(last, ks, fields))
    kinds.append("chance")
    if fields:
        largest: list[object] = ["largest class", *("" for _ in DIRECTIONS for _ in ks)]
        for field in fields:
            largest += [figures.points(shots.get(field, {}).get("largest_class")), ""]
        rows.append(largest)
        kinds.append("chance")
    counts = [objects(last).get(direction, {}).get("n") for direction, _ in DIRECTIONS]
    detail = "" if counts[0] is None else f"{figures.count(counts[0])} images"
    heading = element("h3", None, figures.readable(name), " ", element("small", None, detail))
    return join([heading, table([spans, head], rows, kinds)])


def _result_row(
    run: Run, result: Result, name: str, ks: list[int], fields: list[str]
) -> list[object]:
    one = result.sets[name]
    row: list[object] = [_label(run, result)]
    for direction, _ in DIRECTIONS:
        scores = objects(one).get(direction, {})
        row += [figures.points(scores.get(f"r@{k}")) for k in ks]
    for field in fields:
        scores = objects(one.get("zero_shot")).get(field, {})
        row += [figures.points(scores.get("top1")), figures.points(scores.get("top5"))]
    return row


def _chance_row(one: Record, ks: list[int], fields: list[str]) -> list[object]:
    row: list[object] = ["chance"]
    for direction, _ in DIRECTIONS:
        scores = objects(one).get(direction, {})
        row += [figures.points(scores.get(f"chance_r@{k}")) for k in ks]
    for field in fields:
        classes = figures.number(objects(one.get("zero_shot")).get(field, {}).get("classes"))
        for k in (1, 5):
            row.append(figures.points(min(1.0, k / classes) if classes else None))
    return row


def _label(run: Run, result: Result) -> Html:
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
    return join([text, " ", element("small", {"class": "under"}, ", ".join(sizes))])
