"""What a model is trained for: its loss and its scores. One file per task; none names a model family."""
