"""Profiling: where the time of a stream goes."""
