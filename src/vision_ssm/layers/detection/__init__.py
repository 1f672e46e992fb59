"""Parts of detectors: pyramids, anchors, proposals, heads on regions, and what published ones do differently."""
