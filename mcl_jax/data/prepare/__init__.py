"""Data sets in ArrayRecord form, made from archives and folders without TensorFlow."""
