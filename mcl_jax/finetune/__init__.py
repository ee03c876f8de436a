"""Fine-tuning of torchvision's detectors: needs `machine.PACKAGES`, never JAX."""
