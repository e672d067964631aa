"""Where metrics.jsonl's numbers are shown too: TensorBoard's files, and a tracker's service."""

import importlib
import importlib.util
import json
import uuid
from pathlib import Path
from typing import Any, Protocol

from pretrain.base.files import write_durably
from pretrain.recipe.run_options import TrackerName

_ID_FILE = "tracker.json"  # so that a resumed run goes on under the same name there


class Mirror(Protocol):
    """Shows numbers at a place of the sample stream."""

    def add(self, numbers: dict[str, float], samples_seen: int) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in RUN/tensorboard."""

    def __init__(self, run_dir: Path, samples_seen: int) -> None:
        # Takes seconds to import; and what an earlier start wrote past here is not shown.
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=samples_seen + 1)

    def add(self, numbers: dict[str, float], samples_seen: int) -> None:
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, samples_seen)

    def close(self) -> None:
        self._writer.close()


class Tracker:
    """Weights & Biases or trackio, each by its own environment variables (WANDB_MODE and the like).

    What a resumed run does again is sent again, with the same numbers at the same samples.
    """

    def __init__(
        self, name: TrackerName, project: str, run_dir: Path, config: dict[str, Any]
    ) -> None:
        self._library: Any = importlib.import_module(name)
        self._name = name
        try:
            self._start(project, run_dir, config)
        except Exception as error:  # each library has its own
            raise ValueError(
                f"log.tracker={name} cannot start ({type(error).__name__}: {error}): see its own "
                "documentation, or leave log.tracker out"
            ) from error

    def _start(self, project: str, run_dir: Path, config: dict[str, Any]) -> None:
        name = self._name
        how = {"project": project, "name": run_dir.name, "config": config}
        if name == "wandb":
            self._library.init(**how, id=_id(run_dir), resume="allow", dir=str(run_dir))
            # wandb's own steps may not go back, as a resumed run's do.
            self._library.define_metric("samples_seen")
            self._library.define_metric("*", step_metric="samples_seen")
        else:
            how["name"] = f"{run_dir.name}-{_id(run_dir)}"
            self._library.init(**how, resume="allow")

    def add(self, numbers: dict[str, float], samples_seen: int) -> None:
        if self._name == "wandb":
            self._library.log({**numbers, "samples_seen": samples_seen})
        else:
            self._library.log(numbers, step=samples_seen)

    def close(self) -> None:
        self._library.finish()


def check_tracker(name: TrackerName | None) -> None:
    """ValueError where the library of the asked tracker is not installed."""
    found = None if name is None else importlib.util.find_spec(name)
    # A folder that only has the name, as wandb's own logs beside a run, is no library.
    if name is not None and (found is None or found.loader is None):
        raise ValueError(
            f"log.tracker={name} is not installed: pip install {name}, or leave log.tracker out"
        )


def _id(run_dir: Path) -> str:
    """Of the run folder, drawn at its first start."""
    path = run_dir / _ID_FILE
    if not path.is_file():
        write_durably(path, json.dumps({"id": uuid.uuid4().hex[:12]}) + "\n")
    found: str = json.loads(path.read_text(encoding="utf-8"))["id"]
    return found
