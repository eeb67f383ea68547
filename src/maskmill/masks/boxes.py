"""Boxes of masks and greedy NMS. XYXY with inclusive corners inside, XYWH with w = xmax - xmin outside."""

import numpy as np


def xyxy_to_xywh(boxes: np.ndarray) -> np.ndarray:
    """N x 4 inclusive corners -> SA-1B's XYWH: w = xmax - xmin, h = ymax - ymin."""
    out = boxes.copy()
    out[:, 2:] -= out[:, :2]
    return out


BLOCK = 256  # boxes compared with all that follow at a time: what is held does not grow with the square of their number


def nms(boxes: np.ndarray, scores: np.ndarray, iou_threshold: float, ios_threshold: float = 1.0) -> np.ndarray:
    """Greedy box NMS as torchvision's CPU kernel does it, operation for operation in float32.

    Args: boxes N x 4 XYXY, scores N; a pair with IoU > iou_threshold (compared in float64) loses its lower score, and
    so does one whose intersection over the smaller box is > ios_threshold (1: off).
    Returns: indices of the kept boxes, best score first; equal scores keep their order. 0/0 (flat boxes) keeps both.
    """
    order = np.argsort(-scores.astype(np.float32), kind="stable")
    boxes = boxes[order].astype(np.float32)
    alive = np.ones(len(boxes), dtype=bool)
    for start in range(0, len(boxes), BLOCK):
        rows = start + np.flatnonzero(alive[start : start + BLOCK])
        spared = ~too_much_overlap(boxes[rows], boxes[start:], iou_threshold, ios_threshold)
        spared |= np.arange(start, len(boxes)) <= rows[:, None]  # only those after it
        rest = alive[start:]
        for row, mine in zip(rows.tolist(), spared, strict=True):
            if alive[row]:
                rest &= mine
    return order[alive]


def too_much_overlap(a: np.ndarray, b: np.ndarray, iou_threshold: float, ios_threshold: float) -> np.ndarray:
    """float32 A x 4 and B x 4 XYXY -> bool A x B."""
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = a.T[..., None], b.T
    w = np.maximum(np.float32(0), np.minimum(ax1, bx1) - np.maximum(ax0, bx0))
    h = np.maximum(np.float32(0), np.minimum(ay1, by1) - np.maximum(ay0, by0))
    inter = w * h
    areas, others = (ax1 - ax0) * (ay1 - ay0), (bx1 - bx0) * (by1 - by0)
    with np.errstate(invalid="ignore", divide="ignore"):
        over = (inter / (areas + others - inter)).astype(np.float64) > iou_threshold
        if ios_threshold < 1:
            over |= (inter / np.minimum(areas, others)).astype(np.float64) > ios_threshold
    return over
