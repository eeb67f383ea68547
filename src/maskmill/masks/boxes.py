"""Boxes of masks, crop edges, greedy NMS. XYXY with inclusive corners inside, XYWH with w = xmax - xmin outside."""

import numpy as np
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


def xyxy_to_xywh(boxes: np.ndarray) -> np.ndarray:
    """N x 4 inclusive corners -> SA-1B's XYWH: w = xmax - xmin, h = ymax - ymin."""
    out = boxes.copy()
    out[:, 2:] -= out[:, :2]
    return out


def nms(boxes: np.ndarray, scores: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Greedy box NMS as torchvision's CPU kernel does it, operation for operation in float32.

    Args: boxes N x 4 XYXY, scores N; a pair with IoU > iou_threshold (compared in float64) loses its lower score.
    Returns: indices of the kept boxes, best score first; equal scores keep their order. 0/0 (flat boxes) keeps both.
    """
    boxes = boxes.astype(np.float32)
    x0, y0, x1, y1 = boxes.T
    areas = (x1 - x0) * (y1 - y0)
    order = np.argsort(-scores.astype(np.float32), kind="stable")
    kept: list[int] = []
    with np.errstate(invalid="ignore", divide="ignore"):
        while len(order):
            i, rest = order[0], order[1:]
            kept.append(i)
            w = np.maximum(np.float32(0), np.minimum(x1[i], x1[rest]) - np.maximum(x0[i], x0[rest]))
            h = np.maximum(np.float32(0), np.minimum(y1[i], y1[rest]) - np.maximum(y0[i], y0[rest]))
            inter = w * h
            iou = inter / (areas[i] + areas[rest] - inter)
            order = rest[~(iou.astype(np.float64) > iou_threshold)]
    return np.asarray(kept, dtype=np.int64)
