"""Does a new model serve? Only if no figure of the held-out part is worse than the best so far."""

from collections.abc import Sequence
from typing import Any

CLICKS = ("1", "3", "5")
NOC = ("85", "90")
MOST_CLICKS = 20  # a NoC of 20 is as bad as an IoU of 0


def worse(new: dict[str, Any], served: Sequence[dict[str, Any]], tolerance: float) -> Sequence[str]:
    """A line for each figure that is worse by more than `tolerance` (of an IoU; of NoC 20 times as much).

    served: the metrics of all models that have served. A figure is compared with the best among them: else each of
    many rounds could lose a tolerance.
    """
    found = []
    for n in CLICKS:
        best, after = max(old["miou"][n]["mean"] for old in served), new["miou"][n]["mean"]
        if after < best - tolerance:
            found.append(f"mIoU@{n} fell from {best:.4f} to {after:.4f}")
    for goal in NOC:
        best, after = min(old["noc"][goal]["mean"] for old in served), new["noc"][goal]["mean"]
        if after > best + MOST_CLICKS * tolerance:
            found.append(f"NoC@{goal} rose from {best:.2f} to {after:.2f}")
    return found
