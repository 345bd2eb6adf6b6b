"""Training of the audio encoder, and its export."""
