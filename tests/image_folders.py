"""Folders of tiny images."""

import cv2
import numpy as np


def write_images(root, names):
    """Image i is of the gray value i; returns the data set's name."""
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((4, 4, 3), i, np.uint8))
    return f"folder:{root}"


def names_of(source):
    return [source[i].name for i in range(len(source))]
