"""From an image to the views of it that are compared: crops, color, jigsaw patches, pasted objects."""
