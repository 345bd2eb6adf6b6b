"""What all backends of a kind share: loading compiled kernels, launching, versions, reasons."""
