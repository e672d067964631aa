"""What surrounds a training step: the job, its log, checkpoints and evaluation."""
