"""Side-by-side measurements against simpler models and peers; never part of the test run."""
