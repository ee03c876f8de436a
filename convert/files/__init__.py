"""Files of arrays, read without executing anything and written all or not at all."""
