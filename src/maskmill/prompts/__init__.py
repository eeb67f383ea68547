"""Simulated annotators: prompts made from a mask that is known."""
