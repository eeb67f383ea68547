"""How many masks pass a threshold, for every threshold at once: curves from the stored scores, no filter is run."""

import numpy as np


def acceptance(scores: np.ndarray, thresholds: np.ndarray, strict: bool = False) -> np.ndarray:
    """How many of `scores` (N; NaN = none) pass each of `thresholds` (T): int64 T.

    Compared in float32 as the filter does: `strict` > as for the predicted IoU, else >= as for the stability. A
    threshold of 0 is off: all pass. Exact for the thresholds alone; NMS and what follows it take more away.
    """
    known = np.sort(scores[~np.isnan(scores)].astype(np.float32))
    cuts = np.asarray(thresholds, dtype=np.float32)
    below = np.searchsorted(known, cuts, side="right" if strict else "left")
    return np.where(cuts > 0, len(known) - below, len(scores)).astype(np.int64)


def acceptance_grid(
    predicted_iou: np.ndarray, stability: np.ndarray, iou_thresholds: np.ndarray, stability_thresholds: np.ndarray
) -> np.ndarray:
    """How many masks (scores N each) pass both thresholds: int64 T x S, one cell for each pair."""
    iou_cuts, stability_cuts = np.asarray(iou_thresholds, np.float32), np.asarray(stability_thresholds, np.float32)
    iou, stable = predicted_iou.astype(np.float32), stability.astype(np.float32)
    passed = np.stack([iou > cut if cut > 0 else np.ones(len(iou), bool) for cut in iou_cuts])
    return np.stack([acceptance(stable[rows], stability_cuts) for rows in passed])
