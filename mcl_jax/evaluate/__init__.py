"""What is measured during and after pre-training."""
