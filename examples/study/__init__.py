"""The method on real detectors: one command an experiment, told in docs/results.md."""
