from dataclasses import dataclass
from pathlib import Path

import torch
from mean_colour_entry import ColourSettings
from PIL import Image
from torchvision.transforms import v2

from vision_ssm.data.files import image_files
from vision_ssm.data.splits import held_out
from vision_ssm.models.registry import create_model
from vision_ssm.tasks.meters import AverageMeter
from vision_ssm.tasks.scores import Score
from vision_ssm.tasks.task import Result, Task


class Images:
    def __init__(self, files):
        self.name, self.paths, self.fingerprint = "colours", tuple(map(str, files)), "/".join(f.name for f in files)

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        image = Image.open(self.paths[index]).convert("RGB")
        return image, torch.tensor(image.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))) / 255


@dataclass
class Colour(Result):
    rgb: list

    def to_dict(self):
        return dict(zip(("red", "green", "blue"), self.rgb, strict=True))


class MeanColour(Task):
    name, Settings = "mean_colour", ColourSettings
    scores = (Score("error", "mean error", higher_is_better=False),)

    def open(self, split):
        files = image_files(Path(self.settings.data.path))
        out = held_out([file.name for file in files], [0] * len(files), self.settings.data.val_fraction)
        return Images([f for i, f in enumerate(files) if split == "all" or (i in out) == (split != "train")])

    def transform(self, preprocessing, *, train, native=False):
        size = () if native else (v2.Resize(preprocessing.input_size[1:]),)
        return v2.Compose([*size, v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])

    def build(self, backbone, **options):
        return create_model(backbone, num_classes=3, **options)

    def losses(self, model, batch):
        error = model(batch.images) - batch.targets
        return {"squared": self.settings.colour.squared * error.square().mean(), "absolute": error.abs().mean()}

    def predict(self, model, batch):
        return model(batch.images).float()

    def meter(self):
        return AverageMeter(lambda outputs, batch: {"error": (outputs - batch.targets).abs().mean(1)})

    def results(self, outputs, batch):
        return [Colour(row) for row in outputs.tolist()]
