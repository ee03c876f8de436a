"""Images in: sources, decoding, built-in scenes, the sharded, shuffled, resumable pipeline."""
