"""Gated linear attention over token maps."""
