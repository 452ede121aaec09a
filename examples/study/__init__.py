"""What the method does for real detectors on real images: one command an experiment, gathered into docs/results.md."""
