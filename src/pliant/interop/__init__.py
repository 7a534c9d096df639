"""What people already have: other libraries' calls and checkpoints, and the formats models are exported to."""
