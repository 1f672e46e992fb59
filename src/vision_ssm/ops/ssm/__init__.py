"""The selective SSM from its input to its gated output."""
