"""What training leaves for the product: exported, trimmed and packed weights."""
