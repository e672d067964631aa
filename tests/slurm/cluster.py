"""Submitting to the testbed, and what became of a job."""

import os
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

TESTBED = Path(__file__).with_name("testbed.sh")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "OUT_OF_MEMORY")
JOB_TIMEOUT_S = 300


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job that has ended. An array is one Job: `completed` is true if each of its tasks did."""

    states: list[str]
    exit_codes: list[int]
    restarts: int  # by Slurm; of an array the first task's
    log: str  # all its log files, each under its name

    @property
    def completed(self) -> bool:
        return set(self.states) == {"COMPLETED"}


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The testbed, and a checkout on it to submit from."""

    testbed: Path
    checkout: Path

    def run(self, *command: str | Path, env: dict[str, str]) -> str:
        """Standard output of a command on the login node; the test fails if the command does."""
        result = subprocess.run(
            [TESTBED, "run", self.testbed, *command],
            cwd=self.checkout,
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
        return result.stdout

    def power_off(self, node: str) -> None:
        """A node dies, with all that runs on it, and Slurm hears nothing of it for a while."""
        subprocess.run([TESTBED, "kill", self.testbed, node], check=True)

    def submit(self, *arguments: str | Path, env: dict[str, str]) -> Job:
        """`sbatch ARGUMENTS`, waited for."""
        return self.ended(self.start(*arguments, env=env))

    def start(self, *arguments: str | Path, env: dict[str, str]) -> str:
        """The id of the job that `sbatch ARGUMENTS` has made."""
        return self.run("sbatch", "--parsable", *arguments, env=env).strip()

    def ended(self, job_id: str) -> Job:
        """A job, waited for (`sbatch --wait` itself looks only every ten seconds)."""

        def shown() -> str:
            text = self.show(job_id)
            return text if set(re.findall(r"JobState=(\w+)", text)) <= set(ENDED) else ""

        text = self.wait_for(shown, job_id)
        return Job(
            states=re.findall(r"JobState=(\w+)", text),
            exit_codes=[int(code) for code in re.findall(r" ExitCode=(\d+):", text)],
            restarts=int(found[1]) if (found := re.search(r"Restarts=(\d+)", text)) else 0,
            log=self.log(job_id),
        )

    def show(self, job_id: str) -> str:
        return self.run("scontrol", "show", "--oneliner", "job", job_id, env={})

    def wait_for(self, found: Callable[[], str], job_id: str) -> str:
        """The first text that is found and not empty; without one the job is cancelled."""
        give_up = time.monotonic() + JOB_TIMEOUT_S
        while not (text := found()):
            if time.monotonic() > give_up:
                shown = self.show(job_id)
                self.run("scancel", job_id, env={})
                pytest.fail(f"waited {JOB_TIMEOUT_S} s: {shown}\n{self.log(job_id)}")
            time.sleep(0.2)
        return text

    def log(self, job_id: str) -> str:
        files = sorted((self.checkout / "slurm" / "logs").glob(f"*-{job_id}[-.]*"))
        return "\n".join(f"== {file.name}\n{file.read_text()}" for file in files)
