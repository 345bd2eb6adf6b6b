"""Readers: measure mouth, eyes and position of a drawn face in its pictures, by geometry."""
