"""Weights files: what they hold, opening them, the ones that ship with the package."""
