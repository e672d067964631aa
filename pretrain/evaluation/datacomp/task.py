"""DataComp's sets that a folder holds, each by its own metrics, and the mean of the main ones."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pretrain.base.files import write_durably
from pretrain.evaluation.datacomp.names import SETS, find_sets
from pretrain.evaluation.datacomp.webdatasets import Captioned, Classes, Measured
from pretrain.evaluation.datacomp.winogavil import Winogavil
from pretrain.evaluation.features import Subject
from pretrain.evaluation.options import DataCompOptions, EvaluationOptions
from pretrain.evaluation.sets import Sets
from pretrain.evaluation.task import Figure

MAIN = "main_metric"


class Judged(Protocol):
    """One set, opened."""

    count: int
    """Pictures, or cues."""

    def metrics(self, subject: Subject) -> Mapping[str, Measured]:
        """By DataComp's names. Collective."""


class DataComp:
    """What is there of the 38 sets, opened and checked before any model is built."""

    name = "datacomp"
    is_quick = False

    def __init__(self, options: DataCompOptions) -> None:
        self.options = options
        folders = find_sets(options.folder)
        if not folders:
            raise ValueError(
                f"datacomp.folder={options.folder} holds none of the {len(SETS)} sets: it needs "
                "folders such as wds_imagenet1k_test, which DataComp's download_evalsets.py and "
                "clip_benchmark_export_wds write"
            )
        self.missing = [name for key, (name, _) in SETS.items() if key not in folders]
        self.sets = {key: self._open(key, folder) for key, folder in folders.items()}

    def _open(self, key: str, folder: Path) -> Judged:
        name, main = SETS[key]
        option, batch = f"datacomp.folder, {name}", self.options.batch_samples
        try:
            if key == "misc/winogavil":
                return Winogavil(option, folder, batch)
            if key.startswith("retrieval/"):
                return Captioned(option, folder, batch)
            return Classes(folder, main, batch)
        except ValueError as error:
            if str(error).startswith(option):
                raise
            raise ValueError(f"{option}: {error}") from error

    @classmethod
    def open(cls, options: EvaluationOptions, sets: Sets) -> "DataComp | None":
        return None if options.datacomp is None else cls(options.datacomp)

    def evaluate(self, subject: Subject) -> list[Figure]:
        """Each set's metrics, its main one again as main_metric, and the mean of these over the
        sets that are there; `missing` names the others. Collective."""
        figures, lines, main = [], [], []
        for key, one in self.sets.items():
            metrics = dict(one.metrics(subject))
            if (chosen := metrics.get(SETS[key][1])) is not None:
                metrics[MAIN] = chosen
                main.append(chosen.value)
            figures += [
                self._figure(SETS[key][0], name, value, chance, one.count)
                for name, (value, chance) in metrics.items()
            ]
            lines.append(_line(key, metrics))
        if main:
            mean = float(np.mean(main))
            facts: dict[str, float | str] = {}
            facts |= {"of": len(SETS), "missing": ", ".join(self.missing) or "none"}
            figures.append(self._figure("mean", MAIN, mean, None, len(main), facts))
        if self.options.results is not None and subject.is_main:
            write_durably(self.options.results, "".join(lines))
        return figures

    def _figure(
        self,
        name: str,
        metric: str,
        value: float,
        chance: float | None,
        n: int,
        facts: Mapping[str, float | str] | None = None,
    ) -> Figure:
        return Figure(
            task=self.name, set=name, name=metric, value=value, chance=chance, n=n,
            facts=facts or {},
        )  # fmt: skip


def _line(key: str, metrics: Mapping[str, Measured]) -> str:
    """A set as DataComp's eval_results.jsonl has it."""
    values: dict[str, Any] = {name: one.value for name, one in metrics.items()}
    if "acc1" in values:
        values.setdefault("acc5", None)  # of fewer than five classes
    values.setdefault(MAIN, None)
    return json.dumps({"key": key, "dataset": SETS[key][0], "metrics": values}) + "\n"
