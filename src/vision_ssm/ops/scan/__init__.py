"""The selective scan over token maps."""
