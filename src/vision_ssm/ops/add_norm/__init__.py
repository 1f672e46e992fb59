"""The residual addition and the norm behind it."""
