"""Image files, data sets, transforms and the loader. Knows no model; light to import (submodules bring in torch)."""
