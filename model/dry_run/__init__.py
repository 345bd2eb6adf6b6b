"""What a step does, recorded once: the model's own code on the meta device.

`recorder` records op calls, matrix products, bytes moved and memory held; `record` runs a session's
parts in it; `memory` and `work` query it, and `measure` compares it with an allocator.
"""
