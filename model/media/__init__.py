"""Media in and out: sound, pictures and video."""
