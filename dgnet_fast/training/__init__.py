"""The training step, loop, schedule, checkpoints and logs."""
