"""Boxes of masks and greedy NMS. XYXY with inclusive corners inside, XYWH with w = xmax - xmin outside."""

import numpy as np


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
