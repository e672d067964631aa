"""`state.json` of a checkpoint: where the run stands, and every file with its sha256 and bytes.

It holds a digest of itself. What it says of the run is held against the stages that have begun.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from pretrain.base.files import file_sha256
from pretrain.base.run_files import AVERAGED

STATE_FILE = "state.json"  # of a checkpoint's folder, written last
FORMAT_VERSION = 1
_DIGEST = "record_sha256"  # of all the rest of the record
_STRICT = ConfigDict(strict=True, extra="forbid")


@with_config(_STRICT)
@dataclass(frozen=True, kw_only=True)
class FileSum:
    """What a file must be to be read."""

    sha256: str
    bytes: int


@with_config(_STRICT)
@dataclass(frozen=True, kw_only=True)
class RunState:
    """Where a run stands; with the recipe and the seed, all that a resume needs to know."""

    stage: int = 0  # index of the stage that goes on
    stage_step: int = 0  # optimizer steps done in it
    step: int = 0  # optimizer steps done in the whole job
    samples_seen: int = 0  # position in the sample stream
    dataset_fingerprint: str = ""
    weights_sha256: str = ""
    concepts_sha256: str = ""
    recaptions_sha256: str = ""
    replaced: dict[str, int] = field(default_factory=dict)  # unusable samples by reason, all ranks
    skipped: int = 0  # updates that were not made because a number was not finite
    skipped_in_a_row: int = 0
    log_lines: int = 0  # stages, steps and evaluations that metrics.jsonl held
    # Of the stages that have ended; where averages are kept, each is followed by NAME.ema.
    stage_weights: dict[str, FileSum] = field(default_factory=dict)

    @property
    def begun(self) -> int:
        """How many stages have begun."""
        return self.stage + (self.stage_step > 0)

    @property
    def tag(self) -> str:
        """The folder of the checkpoint that this state is kept in."""
        return f"step-{self.step:08d}"


@with_config(_STRICT)
@dataclass(frozen=True, kw_only=True)
class CheckpointRecord:
    """All that state.json says."""

    state: RunState
    fixed: dict[str, Any]  # what the stages that have begun have fixed
    files: dict[str, FileSum]  # beside it
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        plain = asdict(self)
        return json.dumps({**plain, _DIGEST: _digest(plain)}, indent=2)

    def fault(self) -> str | None:
        """The first thing in which the numbers contradict each other, if any."""
        state = self.state
        try:
            lengths = [
                (int(stage["steps"]), int(stage["global_batch_samples"]))
                for stage in self.fixed["stages"].values()
            ]
            names = list(self.fixed["stages"])
            kinds = ("",) if self.fixed["engine"].get("ema") is None else ("", AVERAGED)
        except (KeyError, TypeError, ValueError, AttributeError):
            return "its stages cannot be read"
        if state.stage < 0 or len(lengths) != state.begun:
            return f"stage {state.stage} goes on, {len(lengths)} have begun"
        ended = [name + kind for name in names[: state.stage] for kind in kinds]
        if list(state.stage_weights) != ended:
            return f"weights of {list(state.stage_weights)}, ended are {ended}"
        done = [steps for steps, _ in lengths[: state.stage]]
        if state.stage_step:
            done.append(state.stage_step)
            if not 0 < state.stage_step <= lengths[-1][0]:
                return f"step {state.stage_step} of a stage of {lengths[-1][0]}"
        samples = sum(n * batch for n, (_, batch) in zip(done, lengths, strict=True))
        if (state.step, state.samples_seen) != (sum(done), samples):
            return (
                f"step {state.step} after {state.samples_seen} samples, by its stages "
                f"{sum(done)} after {samples}"
            )
        return None


def read_record(path: Path) -> CheckpointRecord:
    """The record of the checkpoint in folder `path`.

    OSError where it is gone, ValueError where it is damaged, RuntimeError, naming the remedy, where
    another version has written it. Each in one line.
    """
    text = (path / STATE_FILE).read_bytes()
    try:
        plain = json.loads(text)
        told, own = plain.pop(_DIGEST), _digest(plain)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{STATE_FILE} is not a complete record") from error
    if told != own:
        raise ValueError(f"{STATE_FILE} differs from its own sha256")
    if (version := plain.get("format_version")) != FORMAT_VERSION:
        raise RuntimeError(
            f"checkpoint {path} has format version {version}, this code reads {FORMAT_VERSION}: "
            "train the run anew with `python -m pretrain.train` and another run_dir"
        )
    try:
        return TypeAdapter(CheckpointRecord).validate_json(json.dumps(plain))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{STATE_FILE}: {place}: {first['msg']}") from error


def file_sum(path: Path) -> FileSum:
    """What a file is now."""
    return FileSum(sha256=file_sha256(path), bytes=path.stat().st_size)


def _digest(plain: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()
