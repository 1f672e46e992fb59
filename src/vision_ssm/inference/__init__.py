"""Weights files, prediction, evaluation and reports. Light to import: the submodules bring in torch and matplotlib."""
