"""The layers of the family: they predict where they look, and how much each sample counts."""
