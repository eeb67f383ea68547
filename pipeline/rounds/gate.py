"""Does a new model serve? Only if no figure of the held-out part falls."""

from collections.abc import Sequence
from typing import Any

CLICKS = ("1", "3", "5")
NOC = ("85", "90")
MOST_CLICKS = 20  # a NoC of 20 is as bad as an IoU of 0


def worse(new: dict[str, Any], old: dict[str, Any], tolerance: float) -> Sequence[str]:
    """A line for each figure that is worse by more than `tolerance` (of an IoU; of NoC 20 times as much)."""
    found = []
    for n in CLICKS:
        before, after = old["miou"][n]["mean"], new["miou"][n]["mean"]
        if after < before - tolerance:
            found.append(f"mIoU@{n} fell from {before:.4f} to {after:.4f}")
    for goal in NOC:
        before, after = old["noc"][goal]["mean"], new["noc"][goal]["mean"]
        if after > before + MOST_CLICKS * tolerance:
            found.append(f"NoC@{goal} rose from {before:.2f} to {after:.2f}")
    return found
