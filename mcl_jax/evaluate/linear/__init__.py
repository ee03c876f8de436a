"""Linear classifiers on frozen features (paper appendix B)."""
