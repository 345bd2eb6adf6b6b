"""Encoders of speech, prompt and portrait into the DiT's conditions."""
