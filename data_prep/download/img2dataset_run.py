"""A run of img2dataset as a process group: what it says in a file, how far it is on a line."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from data_prep.sources.links import LinkCounts
from pretrain.base.progress import Bar

_LOOK_S = 0.5
_END_S = 10  # for its processes to end when they are told to
# Of albumentations, which img2dataset imports: it asks the network for newer releases.
_QUIET = {"NO_ALBUMENTATIONS_UPDATE": "1", "PYTHONUNBUFFERED": "1"}


def run_logged(
    command: list[str],
    environment: dict[str, str],
    log_file: Path,
    links: int,
    count: Callable[[], LinkCounts],
    lock: int,
) -> None:
    """Run to the end. OSError names the log if it fails; on a signal its processes end, too.

    It holds `lock`, a file descriptor, as long as it lives: where SIGKILL ends this process alone,
    the next one waits for what goes on.
    """
    with log_file.open("ab") as log, _ended_by_sigterm():
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **_QUIET, **environment},
            start_new_session=True,
            pass_fds=[lock],
        )
        try:
            _watch(process, links, count)
        finally:
            _end_group(process)
    if process.returncode != 0:
        raise OSError(
            f"img2dataset failed with exit status {process.returncode}: {_last_line(log_file)} "
            f"(its whole output is in {log_file}); give the same command again to go on"
        )


def _watch(process: subprocess.Popen[bytes], links: int, count: Callable[[], LinkCounts]) -> None:
    """Show the links that are done until the process ends; they come by whole tars."""
    with Bar(total=links, unit="links", what="download") as bar:
        while True:
            ended = process.poll() is not None
            found = count()
            reasons = " ".join(f"{name}={times:,}" for name, times in found.failed.most_common(4))
            bar.set_postfix_str(f"downloaded={found.downloaded:,} {reasons}", refresh=False)
            bar.update(found.links - bar.n)
            if ended:
                return
            time.sleep(_LOOK_S)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End the process and those that it started; nothing where all have ended."""
    for ending in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, ending)
            process.wait(_END_S)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    process.wait()


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Within, SIGTERM is as Ctrl-C, so that nothing goes on behind a command that was ended."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _last_line(log_file: Path) -> str:
    """What the program said last."""
    with log_file.open("rb") as log:
        log.seek(max(0, log_file.stat().st_size - 4096))
        lines = log.read().decode(errors="replace").split("\n")
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "nothing")
