"""Fine-tuning of torchvision's detectors. Needs torch, torchvision and pycocotools, never JAX."""
