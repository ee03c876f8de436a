"""Multi-Level Contrastive Learning (Guo et al., 2023) in JAX: detection pre-training without labels."""

__version__ = "0.1.0"
