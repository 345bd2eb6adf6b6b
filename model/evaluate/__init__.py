"""Measures how well a model talks, and whether it drifts: ``livetalk evaluate``.

Streams of drawn faces are made by the product's own `ChunkGenerator`, and analysed by geometry and
colours. Nothing here is learned, and no loss uses any of it.
"""
