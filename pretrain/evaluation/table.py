"""The figures as lines of text, chance in brackets."""

from typing import Any

from pretrain.evaluation.retrieval import KS


def table(results: dict[str, Any]) -> str:
    """Retrieval and zero-shot of every set, then probes and abilities."""
    lines = []
    for name, result in results.items():
        if name in ("probe", "abilities"):
            continue
        lines += _retrieval(name, result)
        lines += [
            _zero_shot(name, column, one) for column, one in result.get("zero_shot", {}).items()
        ]
    lines += _probe(results.get("probe", {}))
    lines += [_ability(*item) for item in results.get("abilities", {}).items()]
    return "\n".join(lines)


def _retrieval(name: str, result: dict[str, Any]) -> list[str]:
    lines = []
    for direction in ("image_to_text", "text_to_image"):
        if direction in result:
            one = result[direction]
            recalls = "  ".join(
                f"R@{k} {one[f'r@{k}']:.1%} ({one[f'chance_r@{k}']:.2%})" for k in KS
            )
            lines.append(f"{name}  {direction.replace('_', ' ')}  {recalls}  n={one['n']}")
    return lines


def _zero_shot(name: str, column: str, one: dict[str, Any]) -> str:
    return (
        f"{name}  zero-shot {column}  {_top1(one)} "
        f"({1 / one['classes']:.1%}; largest class {one['largest_class']:.1%})  "
        f"top-5 {one['top5']:.1%}  mean per class {one['mean_per_class_recall']:.1%}  "
        f"{one['classes']} classes"
    )


def _probe(result: dict[str, Any]) -> list[str]:
    ways = {"linear": "inverse_penalty", "knn": "neighbours"}
    return [
        f"probe  {way}  {_top1(result[way])} ({1 / result['classes']:.1%}; largest class "
        f"{result[way]['largest_class']:.1%})  n={result[way]['n']}  "
        f"{setting.replace('_', ' ')} {result[way][setting]:g}  {result['classes']} classes"
        for way, setting in ways.items()
        if way in result
    ]


def _top1(one: dict[str, Any]) -> str:
    low, high = one["top1_ci95"]
    return f"top-1 {one['top1']:.1%} [95%: {low:.1%} to {high:.1%}]"


def _ability(name: str, one: dict[str, Any]) -> str:
    lost = f"  {one['indistinct']:.0%} cannot be told apart" if one["indistinct"] else ""
    return f"ability  {name}  {_top1(one)} ({one['chance']:.1%})  n={one['n']}{lost}"
