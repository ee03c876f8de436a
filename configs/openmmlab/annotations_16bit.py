"""Annotations of more than 256 classes for MMSegmentation, whose own loader keeps 8 bits of a PNG."""

import mmcv
import numpy as np
from mmengine import fileio
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadAnnotations16Bit(LoadAnnotations):
    """Class numbers [H, W] of a 16-bit PNG, as they are."""

    def _load_seg_map(self, results: dict) -> None:
        content = fileio.get(results["seg_map_path"], backend_args=self.backend_args)
        numbers = mmcv.imfrombytes(content, flag="unchanged", backend="cv2")
        results["gt_seg_map"] = numbers.squeeze().astype(np.uint16)
        results["seg_fields"].append("gt_seg_map")
