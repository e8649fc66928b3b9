"""Timing and accuracy of ddn_cvx next to its peers: ``python -m benchmarks run --suite convex``."""
