"""Class-agnostic boxes for the semi-automatic stage (paper, section 4: a box detector of one class, "object")."""
