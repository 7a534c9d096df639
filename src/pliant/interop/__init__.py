"""Work with what people already have: other libraries' calls and checkpoints, and the formats of exported models."""
