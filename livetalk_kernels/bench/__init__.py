"""Measuring the ops: timers, rooflines, baselines, and the machine they ran on."""
