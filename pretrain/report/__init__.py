"""One self-contained HTML page that tells a run's story, made from the run folder alone."""
