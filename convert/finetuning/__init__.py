"""Fine-tuning in Detectron2: what scripts/finetune_detectron2.py does. Runs without JAX."""
