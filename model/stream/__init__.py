"""The stream: sessions, chunks, and the ranks that make them."""
