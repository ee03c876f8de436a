"""What people look at: metrics, curves, sheets of pictures, cards."""
