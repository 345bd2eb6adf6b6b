"""The parallel runtime: one stream over several ranks with the same result as on one."""
