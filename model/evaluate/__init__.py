"""How well a model talks, and whether it drifts: what ``livetalk evaluate`` measures.

Streams of drawn faces are made by the product's own `ChunkGenerator`, and read by geometry and by
colours. Nothing here is learnt, and no loss uses any of it.
"""
