"""Ranks as processes: launched, monitored while they wait for each other, and ended by signals."""
