"""Candidates -> masks: thresholds, NMS, small regions."""
