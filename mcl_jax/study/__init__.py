"""Comparisons of methods at one budget."""
