"""What the method does for real detectors: one command an experiment, told in docs/results.md."""
