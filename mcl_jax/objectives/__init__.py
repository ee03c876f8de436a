"""What is learned: pure loss functions over the same state."""
