"""The experiments: contestants, protocol, results."""
