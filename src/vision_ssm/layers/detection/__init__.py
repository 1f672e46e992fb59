"""Parts of detectors: pyramids, anchors, proposals, heads on regions, and the conventions that published ones follow."""
