"""The loop of every training: updates, optimisers, ranks, records and checkpoints."""
