"""What a model is trained for: its loss and its scores.

One folder per task, found through `registry`; none names a model family.
"""
