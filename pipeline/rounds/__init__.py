"""The data engine: rounds of annotation and retraining (paper, section 4)."""
