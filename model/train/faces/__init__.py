"""Drawn faces: who they are, what their mouths and heads do, and how they are painted."""
