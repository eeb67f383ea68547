"""Small holes and islands of masks (paper, appendix B; segment-anything, utils/amg.py:267-291)."""

from collections.abc import Sequence

from maskmill.masks.rle import compress_edges, edges_of

Box = tuple[int, int, int, int]  # XYXY, corners inclusive


def clean_regions(counts: Sequence[str], height: int, width: int, min_area: int) -> dict[int, tuple[Box, int, str]]:
    """Fill holes, then drop islands, of fewer than `min_area` pixels (8-connected, background too).

    Args: counts: compressed COCO counts of masks of one height x width image.
    Returns: box, area and counts of each mask that had any, by its place in `counts`. If every island of a mask is
    small, the largest stays, of equals the one that OpenCV labels first. The work is done on runs: its cost grows with
    their number and the image's width.
    """
    from maskmill.masks.components import clean

    edges, ends = edges_of(counts, height, width)
    changed, edges, ends, boxes, areas = clean(edges, ends, height, width, min_area)
    new = compress_edges(edges, ends, height, width)
    x0, y0, x1, y1 = boxes.T.tolist()
    return {i: ((x0[i], y0[i], x1[i], y1[i]), area, new[i]) for i, area in enumerate(areas.tolist()) if changed[i]}
