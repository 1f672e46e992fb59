"""Published checkpoints: reading files safely, their layouts and ours, strict loading."""

from __future__ import annotations

from vision_ssm.checkpoints.files import Checkpoint, read_checkpoint, select_weights
from vision_ssm.checkpoints.hub import download, download_url
from vision_ssm.checkpoints.loading import convert, load_published

__all__ = ["Checkpoint", "convert", "download", "download_url", "load_published", "read_checkpoint", "select_weights"]
