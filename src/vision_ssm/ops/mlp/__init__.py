"""The MLP branch of a block."""
