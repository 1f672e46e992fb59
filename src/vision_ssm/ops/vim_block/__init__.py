"""A Vim block, and a column of them, from the residual stream and back to it."""
