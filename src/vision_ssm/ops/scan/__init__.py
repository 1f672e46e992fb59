"""The selective scan over token maps."""

from vision_ssm import moved

moved.answer(__name__)
