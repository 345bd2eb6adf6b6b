"""Shows what the compilers made of our GPU kernels, without a GPU: ``livetalk inspect``.

Triton kernels are compiled ahead of time for Hopper, as its JIT would specialise them for the
model's shapes; CUDA kernels are read from the extension, or compiled from source. Registers, shared
memory, spills and instructions are then read from the machine code itself.
"""
