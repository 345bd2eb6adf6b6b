"""Benchmarks the ops: timers, rooflines, baselines, and the machine they ran on.

The GPU paths are untested on a GPU.
"""
