"""What a command uses, its children included."""

import json
import subprocess
import sys
from dataclasses import dataclass

# In a small process of its own: a child's largest memory counts its parent's at the fork.
_RUN = """
import json, resource, subprocess, sys, time
begin = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
wall_s = time.perf_counter() - begin
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([used.ru_utime + used.ru_stime, wall_s, used.ru_maxrss / 1024]))
"""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Of a command that ended well."""

    cpu_s: float
    wall_s: float
    peak_mib: float  # of its largest process


def used_by(command: list[str]) -> Usage:
    """Run a command in silence. CalledProcessError if it fails."""
    done = subprocess.run(
        [sys.executable, "-c", _RUN, *command], check=True, capture_output=True, text=True
    )
    cpu_s, wall_s, peak_mib = json.loads(done.stdout)
    return Usage(cpu_s=cpu_s, wall_s=wall_s, peak_mib=peak_mib)
