"""What a step does, recorded once: the model's own code on the meta device.

`recorder` notes calls of ops, products, bytes and the memory that is held; `record` runs a
session's parts in it; `memory` and `work` ask it, and `measure` holds it to an allocator.
"""
