"""Training of the transformer, chunk by chunk: the teacher, and the few-step student."""
