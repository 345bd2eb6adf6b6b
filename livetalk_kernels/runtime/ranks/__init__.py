"""Ranks as processes: launched, watched while they wait for each other, and ended by signals."""
