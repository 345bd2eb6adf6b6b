"""Readers: mouth, eyes and place of a drawn face, measured in its pictures by geometry."""
