"""Weights on disk and in memory: checkpoints, safetensors files, manifests, random numbers."""
