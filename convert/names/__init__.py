"""Names and layouts of every array, here and in other libraries."""
