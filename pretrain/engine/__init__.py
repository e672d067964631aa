"""The optimizer step: DeepSpeed, its configuration, optimizers and schedules."""
