"""Images in: sources, decoding, the built-in scenes, and the sharded, shuffled, resumable pipeline."""
