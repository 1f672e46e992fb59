"""Weights files and checkpoints from anybody: a model that predicts, or CheckpointError, and no code run."""

from __future__ import annotations

import argparse
import io
import json
import pickle
import random
import zipfile
from collections import OrderedDict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from fuzz.faults import Fault, outcome_of
from vision_ssm import predict
from vision_ssm.checkpoints import read_checkpoint
from vision_ssm.errors import CheckpointError, VisionSSMError
from vision_ssm.weights.files import load_weights
from vision_ssm.weights.shipped import find_weights

__all__ = ["case"]

ODD: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1,
    2**31,
    2**70,
    1e-9,
    1e308,
    float("nan"),
    "",
    "x",
    "vim_nano",
    "/etc/passwd",
)
ODD += ([], {}, [[]], [1, 2], {"0": "a"}, {"": None}, "hf-hub:a/b", "\u202e\x1b[31m", "9" * 5000)
KEYS = (
    "pretrained",
    "checkpoint_path",
    "cache_dir",
    "depth",
    "embed_dim",
    "num_classes",
    "img_size",
    "class_names",
    "0",
)


def case(rng: random.Random, folder: Path) -> None:
    """Damage a weights file, or a checkpoint of torch's."""
    (_of_weights if rng.random() < 0.5 else _of_pickles)(rng, folder)


@cache
def _whole() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    path = find_weights(None)
    with safetensors.safe_open(path, framework="pt") as file:
        return safetensors.torch.load_file(path), json.loads(file.metadata()["vision_ssm"])


def _of_weights(rng: random.Random, folder: Path) -> None:
    tensors, description = dict(_whole()[0]), json.loads(json.dumps(_whole()[1]))
    changes = [_change(rng, description) for _ in range(rng.choice((0, 1, 1, 2)))]
    changes += [_change_tensors(rng, tensors) for _ in range(rng.choice((0, 0, 0, 1)))]
    text = json.dumps(description)
    if rng.random() < 0.05:
        depth = rng.choice((500, 200_000))
        text = text.replace('"metrics":', f'"more": {"[" * depth}{"]" * depth}, "metrics":')
    content = bytearray(safetensors.torch.save(tensors, metadata={"format": "pt", "vision_ssm": text}))
    if rng.random() < 0.3:
        changes.append(_damage(rng, content))
    path = folder / "w.safetensors"
    path.write_bytes(content)
    loaded = outcome_of(lambda: load_weights(path))
    if loaded.error is not None:
        if not isinstance(loaded.error, CheckpointError):
            raise Fault(f"load_weights ends in {loaded}; {changes}")
        return
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3)).astype(np.uint8))
    found = outcome_of(lambda: predict(loaded.value, image))
    if found.error is not None and not isinstance(found.error, VisionSSMError):
        raise Fault(f"predict ends in {found}; {changes}")


def _change(rng: random.Random, description: dict[str, Any]) -> str:
    """Put something odd in some place of the description, however deep."""
    inside: Any = description
    way = []
    while True:
        keys = list(inside) if isinstance(inside, dict) else list(range(len(inside)))
        key = rng.choice(keys) if keys and rng.random() < 0.9 else rng.choice(KEYS)
        if isinstance(inside, list) and not isinstance(key, int):
            inside.append(rng.choice(ODD))
            return f"{way} longer"
        way.append(key)
        known = isinstance(inside, list) or key in inside
        if known and isinstance(inside[key], dict | list) and inside[key] and rng.random() < 0.8:
            inside = inside[key]
            continue
        if known and rng.random() < 0.2:
            del inside[key]
            return f"{way} gone"
        inside[key] = rng.choice(ODD)
        return f"{way} = {str(inside[key])[:40]!r}"


def _change_tensors(rng: random.Random, tensors: dict[str, torch.Tensor]) -> str:
    name = rng.choice(list(tensors))
    how = rng.choice(("gone", "cut", "dtype", "more", "nan", "scalar"))
    x = tensors[name]
    if how == "gone":
        del tensors[name]
    elif how == "more":
        tensors[f"{name}.more"] = x.clone()
    else:
        tensors[name] = {
            "cut": lambda: x[..., : max(x.shape[-1] - 1, 0)].clone() if x.dim() else x,
            "dtype": lambda: x.to(rng.choice((torch.int8, torch.bool, torch.bfloat16, torch.float64, torch.float16))),
            "nan": lambda: torch.full_like(x, float("nan")) if x.is_floating_point() else x,
            "scalar": lambda: torch.tensor(1.0),
        }[how]().contiguous()
    return f"{name} {how}"


def _damage(rng: random.Random, content: bytearray) -> str:
    length = int.from_bytes(content[:8], "little")
    how = rng.choice(("length", "header", "cut", "header", "text"))
    if how == "length":
        content[:8] = rng.choice((0, 1, length - 1, length + 1, 10**8, 2**63)).to_bytes(8, "little")
    elif how == "cut":
        del content[rng.randrange(len(content)) :]
    elif how == "text":
        header = bytes(content[8 : 8 + length])
        header = header.replace(b'"F32"', rng.choice((b'"F8_"', b'"I64"', b'"F64"', b'"U8"', b'"BF16"')), 1)
        content[:] = len(header).to_bytes(8, "little") + header + content[8 + length :]
    else:
        content[8 + rng.randrange(length)] = rng.randrange(256)
    return how


def _of_pickles(rng: random.Random, folder: Path) -> None:
    path = folder / rng.choice(("c.pth", "c.bin", "c.ckpt", "c.safetensors"))
    state = _state(rng)
    file = io.BytesIO()
    how = rng.choice(("torch", "torch", "old", "pickle", "deflated", "sparse"))
    if how == "pickle":
        file.write(pickle.dumps(rng.choice((state, _Runs(), [1], "text", {1: 2})), rng.choice((2, 4, 5))))
    elif how == "deflated":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", pickle.dumps({}, 2))
            archive.writestr("archive/data/0", bytes(rng.choice((10, 10**6, 10**8))))
            archive.writestr("archive/version", "3\n")
    else:
        torch.save(state, file, _use_new_zipfile_serialization=how != "old")
    content = bytearray(file.getvalue())
    for _ in range(rng.choice((0, 1, 1, 3))):
        at = rng.randrange(len(content))
        if rng.random() < 0.2:
            del content[at + 1 :]
        else:
            content[at] = rng.randrange(256)
    path.write_bytes(content)
    found = outcome_of(lambda: read_checkpoint(path, weights=rng.choice(("model", "model_ema"))))
    if found.error is not None and not isinstance(found.error, CheckpointError):
        raise Fault(f"read_checkpoint of {path.name} ({how}, {list(map(str, state))[:5]}) ends in {found}")
    if _Runs.ran:
        raise Fault("a pickle ran code")


class _Runs:
    """Would run code if it were unpickled."""

    ran: list[int] = []  # noqa: RUF012

    def __reduce__(self) -> Any:
        return _Runs.ran.append, (1,)


def _state(rng: random.Random) -> dict[Any, Any]:
    x = torch.randn(3, 4)
    values: tuple[Any, ...] = (x, x.int(), x.to_sparse(), x.to("meta"), x.T, torch.nn.Parameter(x), x[:, ::2], None, 3)
    values += (
        np.float64(2),
        [x],
        {"a": x},
        argparse.Namespace(a=1),
        "text",
        torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
    )
    names = (
        "a.weight",
        "module.a.weight",
        "_orig_mod.b",
        "n_averaged",
        "state_dict",
        "model",
        "model_ema",
        "",
        5,
        "x" * 300,
    )
    inner = OrderedDict((rng.choice(names), rng.choice((x, x, rng.choice(values)))) for _ in range(rng.randrange(5)))
    return rng.choice((inner, {"model": inner}, {"state_dict": inner, "epoch": 3}, {"model": rng.choice(values)}))
