"""The configuration: what every key may hold, the one door, and the records filled from it."""
