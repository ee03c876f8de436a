"""What a run will need, from the compiler and published figures of chips."""
