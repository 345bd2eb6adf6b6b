"""Training of the VAE: its start, whole videos at once, and its losses."""
