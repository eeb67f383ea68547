"""`MaskGenerator`: a drop-in for segment-anything's SamAutomaticMaskGenerator."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from maskmill.config import FilterConfig, GenerateConfig
from maskmill.errors import UserError
from maskmill.filters.apply import apply_filter
from maskmill.generate.candidates import find_candidates
from maskmill.generate.grids import crop_plan
from maskmill.masks.boxes import xyxy_to_xywh
from maskmill.masks.rle import decode, uncompress
from maskmill.masks.table import MaskTable
from maskmill.sam.sam import Sam

OUTPUT_MODES = ("binary_mask", "uncompressed_rle", "coco_rle")


class MaskGenerator:
    """Masks for everything in an image. Arguments, defaults and records are those of SamAutomaticMaskGenerator.

    One addition: `max_area_share` drops masks that cover that share of the image or more (0.95 in SA-1B; 0 = off, as in
    the released code). The candidates' floor is the filter itself: nothing is kept that the filter would drop.
    """

    def __init__(
        self,
        model: Sam,
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: Sequence[np.ndarray] | None = None,
        min_mask_region_area: int = 0,
        output_mode: str = "binary_mask",
        max_area_share: float = 0.0,
    ) -> None:
        if output_mode not in OUTPUT_MODES:
            raise UserError(f"output_mode is {output_mode!r}: known modes: {', '.join(OUTPUT_MODES)}")
        grids = None if point_grids is None else tuple(tuple((float(x), float(y)) for x, y in g) for g in point_grids)
        self.model = model
        self.output_mode = output_mode
        self.generate_config = GenerateConfig(
            points_per_side=points_per_side,
            points_per_batch=points_per_batch,
            point_grids=grids,
            crop_n_layers=crop_n_layers,
            crop_overlap_ratio=crop_overlap_ratio,
            crop_n_points_downscale_factor=crop_n_points_downscale_factor,
            stability_score_offset=stability_score_offset,
            floor_pred_iou=pred_iou_thresh,
            floor_stability=stability_score_thresh,
            precision=model.precision,
        )
        self.filter_config = FilterConfig(
            pred_iou_thresh=pred_iou_thresh,
            stability_score_thresh=stability_score_thresh,
            max_area_share=max_area_share,
            box_nms_thresh=box_nms_thresh,
            crop_nms_thresh=crop_nms_thresh,
            min_mask_region_area=min_mask_region_area,
        )

    def masks(self, image: np.ndarray) -> MaskTable:
        """H x W x 3 uint8 RGB -> the final masks as columns, in the official order."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise UserError(f"image is {image.dtype} {image.shape}: expected uint8 H x W x 3 (RGB)")
        height, width = image.shape[:2]
        candidates = find_candidates(self.model, image, self.generate_config)
        return apply_filter(candidates, self.filter_config, len(crop_plan(height, width, self.generate_config)))

    def generate(self, image: np.ndarray) -> list[dict[str, Any]]:
        """H x W x 3 uint8 RGB -> one record for each mask.

        Keys: segmentation (bool H x W, or an RLE dict as `output_mode` says), area (px), bbox (XYWH, w = xmax - xmin),
        predicted_iou, point_coords ([[x, y]]), stability_score, crop_box (XYWH).
        """
        table = self.masks(image)
        bbox, crop_box = xyxy_to_xywh(table.box), xyxy_to_xywh(table.crop_box)
        return [
            {
                "segmentation": self.segmentation(table, i),
                "area": int(table.area[i]),
                "bbox": bbox[i].tolist(),
                "predicted_iou": float(table.predicted_iou[i]),
                "point_coords": [table.point[i].tolist()],
                "stability_score": float(table.stability_score[i]),
                "crop_box": crop_box[i].tolist(),
            }
            for i in range(len(table))
        ]

    def generate_batch(self, images: Iterable[np.ndarray]) -> list[list[dict[str, Any]]]:
        """`generate` for several images; the same records as one by one."""
        return [self.generate(image) for image in images]

    def segmentation(self, table: MaskTable, i: int) -> Any:
        """Mask i in the asked output mode."""
        counts = table.counts(i)
        if self.output_mode == "binary_mask":
            return decode(counts, table.height, table.width)
        size = [table.height, table.width]
        if self.output_mode == "coco_rle":
            return {"size": size, "counts": counts}
        return {"size": size, "counts": uncompress(counts, table.height, table.width)}
