"""Data: clips on disk, made from drawn faces or cut from videos, and windows read from them."""
