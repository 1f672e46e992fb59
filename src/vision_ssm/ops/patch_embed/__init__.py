"""Images to the residual stream of a columnar model."""
