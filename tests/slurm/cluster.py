"""Submitting to the testbed, and what became of a job."""

import os
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

TESTBED = Path(__file__).with_name("testbed.sh")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "OUT_OF_MEMORY")
JOB_TIMEOUT_S = 180


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job that has ended. An array is one Job: `completed` is true if each of its tasks did."""

    states: list[str]
    exit_codes: list[int]
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

    def submit(self, *arguments: str | Path, env: dict[str, str]) -> Job:
        """`sbatch ARGUMENTS`, waited for (`sbatch --wait` itself looks only every ten seconds)."""
        job_id = self.run("sbatch", "--parsable", *arguments, env=env).strip()
        give_up = time.monotonic() + JOB_TIMEOUT_S
        while True:
            shown = self.run("scontrol", "show", "--oneliner", "job", job_id, env={})
            states = re.findall(r"JobState=(\w+)", shown)
            if all(state in ENDED for state in states):
                break
            if time.monotonic() > give_up:
                self.run("scancel", job_id, env={})
                pytest.fail(f"job {job_id} is {states} after {JOB_TIMEOUT_S} s\n{self.log(job_id)}")
            time.sleep(0.2)
        exit_codes = [int(code) for code in re.findall(r" ExitCode=(\d+):", shown)]
        return Job(states=states, exit_codes=exit_codes, log=self.log(job_id))

    def log(self, job_id: str) -> str:
        files = sorted((self.checkout / "slurm" / "logs").glob(f"*-{job_id}[-.]*"))
        return "\n".join(f"== {file.name}\n{file.read_text()}" for file in files)
