"""A GPU's step taken apart in eight minutes: `python -m benchmarks.gpu_probe`."""
