"""The first batch's samples after a resume anywhere in a very large dataset, with weights.

    python -m benchmarks.far_resume

Weights of SAMPLES rows in a file, as `data_prep weigh` writes them; a new process opens them and
names the rows of a global batch of 65,536 at positions over ten epochs. Its seconds and its memory,
that of the mapped file included. Goes to results/far_resume.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

import numpy as np

from benchmarks.machine import this_machine
from pretrain.base.files import write_durably

RESULTS = Path(__file__).parent / "results/far_resume.json"
SAMPLES = 100_000_000
RESUME = """
import json, resource, sys, time
begin = time.perf_counter()
from pathlib import Path
from pretrain.batches.order import SampleOrder
from pretrain.dataset.sample_weights import SampleWeights, open_values
samples, rank, ranks = int(sys.argv[2]), int(sys.argv[4]), 8
weights = SampleWeights(open_values(Path(sys.argv[1]), samples, "FILE"))
order = SampleOrder(samples=samples, seed=0, weights=weights)
first = int(float(sys.argv[3]) * order.epoch_samples) // 65536 * 65536
positions = order.share(first, 65536, rank, ranks)
rows = order.rows(positions)
assert len(rows) == 8192 and 0 <= rows.min() and rows.max() < samples
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"epochs": float(sys.argv[3]), "seconds": time.perf_counter() - begin,
    "peak_mib": peak / 1024}))
"""


def main() -> None:
    """Write the weights, resume at several places, keep the rows."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--samples", type=int, default=SAMPLES)
    samples = options.parse_args().samples
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w.npy"
        values = np.lib.format.open_memmap(path, mode="w+", dtype="<f4", shape=(samples,))
        draws = np.random.default_rng(0)
        for first in range(0, samples, 1 << 22):
            stop = min(first + (1 << 22), samples)
            values[first:stop] = draws.exponential(size=stop - first)
        values.flush()
        for epochs in (0.0, 0.37, 3.999, 9.5):
            done = subprocess.run(
                [sys.executable, "-c", RESUME, str(path), str(samples), str(epochs), "3"],
                check=True,
                capture_output=True,
                text=True,
            )
            rows.append(json.loads(done.stdout))
            print(done.stdout, end="", flush=True)
    result = {
        "machine": this_machine(ranks=1),
        "date": date.today().isoformat(),
        "samples": samples,
        "rows": rows,
    }
    write_durably(RESULTS, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
