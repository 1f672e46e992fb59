"""Random numbers as a function of the seed and a position, so that a checkpoint need not hold any generator's state."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch

__all__ = ["seed_everything"]


def seed_everything(seed: int, *position: int | str) -> None:
    """Set the global generators of `random`, `numpy.random` and torch (every device) for this position of the run."""
    key = "/".join(str(part) for part in (seed, *position))
    digest = hashlib.blake2b(key.encode(), digest_size=24).digest()
    python, numpy, pytorch = (int.from_bytes(digest[i : i + 8], "little") for i in (0, 8, 16))
    random.seed(python)
    np.random.seed(numpy % 2**32)
    torch.manual_seed(pytorch % 2**63)
