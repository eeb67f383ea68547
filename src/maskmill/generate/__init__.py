"""Image + model -> candidates: grids, crops, decode, score."""
