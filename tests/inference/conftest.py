"""A tiny model with its weights file, and a tiny data set it can tell apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from vision_ssm.data.preprocessing import Preprocessing
from vision_ssm.models.registry import create_model
from vision_ssm.weights.files import Loaded, WeightsInfo, save_weights

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}
OPTIONS = {"depth": 1, "embed_dim": 16, "img_size": 8}
PREPROCESSING = Preprocessing(input_size=(3, 8, 8), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), crop_pct=1.0)


@pytest.fixture(scope="session")
def loaded() -> Loaded:
    """A model trained for a few steps to tell plain colours apart, as a real one would be."""
    torch.manual_seed(0)
    model = create_model("vim_nano", num_classes=3, **OPTIONS)
    images = 2 * torch.tensor(list(COLOURS.values())).view(3, 3, 1, 1).expand(3, 3, 8, 8) / 255 - 1
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), torch.arange(3)).backward()
        optimizer.step()
    assert model(images).argmax(dim=1).tolist() == [0, 1, 2]
    record = {"class_names": list(COLOURS)}
    info = WeightsInfo("vim_nano", OPTIONS, "classification", record, PREPROCESSING, {"top1": 1.0}, version="0")
    return Loaded(model.eval(), info)


@pytest.fixture
def weights(tmp_path: Path, loaded: Loaded) -> Path:
    path = tmp_path / "best.safetensors"
    save_weights(path, loaded.model, info=loaded.info)
    return path


@pytest.fixture
def colour_folder(tmp_path: Path) -> Callable[..., Path]:
    def make(*names: str, count: int = 4) -> Path:
        root = tmp_path / "val"
        for name in names or COLOURS:
            (root / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (12, 10), COLOURS.get(name, (9, 9, 9))).save(root / name / f"{number}.png")
        return root

    return make
