"""Where weights go to: the files that each library wants."""
