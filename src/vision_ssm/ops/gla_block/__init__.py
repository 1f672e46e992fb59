"""A block of gated linear attention from the residual stream and back, in one call."""
