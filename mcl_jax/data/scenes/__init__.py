"""The built-in data set: rendered scenes with boxes and labels."""
