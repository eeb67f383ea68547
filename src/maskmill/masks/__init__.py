"""Run-length encoding, boxes, regions: pure functions on arrays."""
