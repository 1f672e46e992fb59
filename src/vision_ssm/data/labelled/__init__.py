"""Images with one class each: folders of class folders, and well-known data sets by name."""
