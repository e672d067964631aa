"""The hardest confusions: classes and captions that the model takes for one another most often."""

from pretrain.report import figures
from pretrain.report.gallery import picture_of
from pretrain.report.run_folder import Record, Run


def confusions_of(run: Run) -> list[Record]:
    """A list of pairs for each task that has any, most frequent first."""
    found = (run.gallery or {}).get("confusions")
    tasks = [task for task in found if isinstance(task, dict)] if isinstance(found, list) else []
    return [shown for task in tasks if (shown := _task(task))["pairs"]]


def _task(task: Record) -> Record:
    pairs = task.get("pairs")
    return {
        "title": figures.readable(task.get("task", figures.MISSING)),
        "detail": f"{figures.count(task.get('classes'))} choices, "
        f"{figures.count(task.get('wrong'))} of {figures.count(task.get('n'))} pictures wrong",
        "pairs": [
            {
                "name": pair.get("name", figures.MISSING),
                "taken_for": pair.get("taken_for", figures.MISSING),
                "often": f"{figures.count(pair.get('count'))} of {figures.count(pair.get('of'))}",
                "example": picture_of(pair.get("example")),
            }
            for pair in (pairs if isinstance(pairs, list) else [])
            if isinstance(pair, dict)
        ],
    }
