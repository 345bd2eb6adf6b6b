"""What turns speech, prompt and portrait into the DiT's conditions."""
