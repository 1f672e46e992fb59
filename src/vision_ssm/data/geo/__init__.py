"""Scenes: images of any bands with coordinates, read and written through rasterio (the extra ``geo``)."""
