"""The parallel runtime: runs one stream on several ranks, with the same result as on one.

The GPU paths are untested on a GPU.
"""
