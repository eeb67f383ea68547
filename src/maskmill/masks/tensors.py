"""Boxes of masks that are tensors, and which of them touch a crop's edge."""

import torch
from torch import Tensor


def mask_to_box(masks: Tensor) -> Tensor:
    """bool N x H x W -> int64 N x 4 XYXY, corners inclusive; an empty mask gives 0, 0, 0, 0 (utils/amg.py:303-346)."""
    if masks.numel() == 0:
        return torch.zeros(masks.shape[0], 4, dtype=torch.int64, device=masks.device)
    columns, rows = masks.any(dim=1), masks.any(dim=2)
    left, right = first_and_last(columns)
    top, bottom = first_and_last(rows)
    box = torch.stack([left, top, right, bottom], dim=1)
    return box * columns.any(dim=1, keepdim=True)


def first_and_last(flags: Tensor) -> tuple[Tensor, Tensor]:
    """bool N x L -> index of the first and of the last True in each row."""
    as_int = flags.to(torch.uint8)
    return as_int.argmax(dim=1), flags.shape[1] - 1 - as_int.flip(1).argmax(dim=1)


def near_crop_edge(boxes: Tensor, crop: tuple[int, int, int, int], height: int, width: int, tolerance: float) -> Tensor:
    """Which boxes (N x 4 XYXY, image frame) touch a crop edge that is no edge of the image (utils/amg.py:78)."""
    corners = boxes.float()
    crop_edge = torch.tensor(crop, dtype=torch.float, device=boxes.device)
    image_edge = torch.tensor((0, 0, width, height), dtype=torch.float, device=boxes.device)
    at_crop = torch.isclose(corners, crop_edge[None], atol=tolerance, rtol=0)
    at_image = torch.isclose(corners, image_edge[None], atol=tolerance, rtol=0)
    return (at_crop & ~at_image).any(dim=1)
