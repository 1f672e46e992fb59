"""The MLP branch of a block."""

from vision_ssm import moved

moved.answer(__name__)
