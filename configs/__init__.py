"""ml_collections configurations; base.py holds every key."""
