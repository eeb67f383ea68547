"""Intervals of means by the bootstrap. Whole images are drawn: masks of one image are alike."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A mean over masks and its 95% interval."""

    mean: float
    low: float
    high: float

    def tree(self) -> dict[str, float]:
        return {"mean": round(self.mean, 5), "low": round(self.low, 5), "high": round(self.high, 5)}


def estimate(values: np.ndarray, groups: np.ndarray, resamples: int, seed: int) -> Estimate:
    """The mean of N values; `groups` (N, whole numbers) says which image each belongs to. NaN for no value at all."""
    if not len(values):
        return Estimate(float("nan"), float("nan"), float("nan"))
    _, group = np.unique(groups, return_inverse=True)
    return ratio(np.bincount(group, values), np.bincount(group), resamples, seed)


def ratio(sums: np.ndarray, counts: np.ndarray, resamples: int, seed: int) -> Estimate:
    """Sum of `sums` over sum of `counts`, each given by image (I)."""
    rng, n = np.random.default_rng(seed), len(sums)
    means = np.empty(resamples)
    for i in range(resamples):  # one at a time: images x resamples need not fit into memory
        drawn = np.bincount(rng.integers(0, n, n), minlength=n)
        means[i] = drawn @ sums / max(drawn @ counts, 1e-12)
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(float(sums.sum() / counts.sum()), float(low), float(high))
