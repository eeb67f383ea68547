"""An object as a tree of outlines: a whole, its parts, their parts. All in the unit frame of `shapes`.

A piece with parent -1 belongs to the silhouette; any other is clipped to its parent. Pieces are listed depth first,
so that nothing but its own parts is ever painted over a piece before its brothers come.
"""

from dataclasses import dataclass

from maskmill.training.scenes.base import Points


@dataclass(frozen=True)
class Piece:
    """Closed outlines, even-odd. `like`: the piece whose material it shares (mirrored limbs, rows of windows).
    `target`: it is a part that people would name; the bars of a fence are not."""

    rings: tuple[Points, ...]
    parent: int = -1
    like: int = -1
    target: bool = True


Thing = list[Piece]
