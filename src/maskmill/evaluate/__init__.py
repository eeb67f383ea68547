"""Evaluation of models and masks."""
