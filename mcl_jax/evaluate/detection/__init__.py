"""The detection probe: a small FCOS detector on a pre-trained network."""
