"""Shared by all backends of a kind: loading compiled kernels, launching, versions, reasons."""
