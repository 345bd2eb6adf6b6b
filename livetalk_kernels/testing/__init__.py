"""What tests and benchmarks use to decide whether a result is right."""
