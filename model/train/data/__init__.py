"""Data: clips on disk, made of drawn faces or cut from videos, and windows read from them."""
