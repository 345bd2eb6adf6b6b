"""Tools with which tests and benchmarks decide whether a result is right."""
