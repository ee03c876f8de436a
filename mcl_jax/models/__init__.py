"""Networks in flax.linen; the names of their parameters are Detectron2's."""
