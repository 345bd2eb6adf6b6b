"""Media input and output: sound, pictures and video."""
