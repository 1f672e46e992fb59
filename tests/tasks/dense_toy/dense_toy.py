"""A class per pixel: what a segmentation needs of the seam and a mean colour does not.

Images of different sizes, padded together; masks that move with their image; a model around a backbone with an
auxiliary head; outputs that are a list; targets that are dictionaries; names and a palette in the weights file.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from dense_toy_entry import DenseSettings
from PIL import Image
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from vision_ssm.data.batches import Batch
from vision_ssm.data.files import image_files
from vision_ssm.data.images import read_image
from vision_ssm.models.registry import create_model
from vision_ssm.tasks.scores import Score, Table
from vision_ssm.tasks.task import Result, Task


class Scenes:
    name = "scenes"

    def __init__(self, files):
        self.paths, self.fingerprint = tuple(map(str, files)), "/".join(file.name for file in files)

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        image = read_image(self.paths[index])
        return image, tv_tensors.Mask(v2.functional.pil_to_tensor(image)[0] > 127).long()


class Joint:
    """Image and mask through one chain."""

    def __init__(self, preprocessing, train):
        self.chain = v2.Compose([v2.RandomHorizontalFlip(0.5 if train else 0), v2.ToImage(), v2.ToDtype(torch.float32)])
        self.mean = 255 * preprocessing.mean[0]

    def __call__(self, image, target):
        image, mask = self.chain(image, target)
        return (image - self.mean) / 100, None if mask is None else {"mask": mask, "size": mask.shape}


class TwoHeads(nn.Module):
    def __init__(self, backbone, classes):
        super().__init__()
        self.backbone = backbone
        width = backbone.num_features
        self.head, self.auxiliary = nn.Conv2d(width, classes, 1), nn.Conv2d(width, classes, 1)

    def forward(self, images):
        maps = self.backbone.forward_intermediates(images, indices=[0, 1], intermediates_only=True)
        return [F.interpolate(h(m), images.shape[2:]) for h, m in ((self.head, maps[1]), (self.auxiliary, maps[0]))]


class ConfusionMeter:
    def __init__(self, names):
        self.names, self.count = names, 0
        self.confusion = torch.zeros(len(names), len(names), dtype=torch.int64)

    def update(self, outputs, batch):
        for logits, target in zip(outputs, batch.targets, strict=True):
            cells = target["mask"].flatten() * len(self.names) + logits.argmax(0).flatten()
            self.confusion += torch.bincount(cells, minlength=self.confusion.numel()).view_as(self.confusion).cpu()
            self.count += 1

    def state(self):
        return self.count, self.confusion

    def merge(self, states):
        self.count, self.confusion = sum(count for count, _ in states), sum(matrix for _, matrix in states)

    def scores(self):
        hits = self.confusion.diagonal()
        union = self.confusion.sum(0) + self.confusion.sum(1) - hits
        return {"error": 1 - float((hits / union).nanmean()), "pixels": float(hits.sum() / self.confusion.sum())}

    def details(self):
        return {"confusion": self.confusion.tolist()}

    def tables(self):
        return [Table("Pixels", ("class",), [(name,) for name in self.names])]


@dataclass
class Areas(Result):
    mask: torch.Tensor
    palette: list

    def to_dict(self):
        return {"size": list(self.mask.shape), "share": round(float(self.mask.float().mean()), 4)}

    def draw(self, image):
        colours = torch.tensor(self.palette, dtype=torch.uint8)[self.mask]
        return Image.blend(image, Image.fromarray(colours.numpy()), 0.5)


class Dense(Task):
    name, Settings = "dense_toy", DenseSettings
    scores: ClassVar = (Score("error", "1 - mIoU", "%", higher_is_better=False), Score("pixels", "pixels right", "%"))
    unused_parameters = True  # the backbone's last norm is not on the way

    def __init__(self, settings):
        super().__init__(settings)
        self.names, self.palette = [], []

    def open(self, split):
        files = image_files(Path(self.settings.data.path))
        cut = len(files) * 3 // 4
        return Scenes({"train": files[:cut], "all": files}.get(split, files[cut:]))

    def prepare(self, train):
        self.names, self.palette = ["ground", "thing"], [[0, 0, 0], [255, 0, 0]]

    def transform(self, preprocessing, *, train, native=False):
        return Joint(preprocessing, train)

    def collate(self, samples):
        height, width = (max(sample.image.shape[axis] for sample in samples) for axis in (1, 2))
        height, width = -(-height // 4) * 4, -(-width // 4) * 4
        images = [F.pad(s.image, (0, width - s.image.shape[2], 0, height - s.image.shape[1])) for s in samples]
        numbers = (torch.tensor([s.size for s in samples]), torch.tensor([s.position for s in samples]))
        return Batch(torch.stack(images), [sample.target for sample in samples], *numbers)

    def build(self, backbone, **options):
        return TwoHeads(create_model(backbone, num_classes=0, **options), len(self.names))

    def backbone(self, model):
        return model.backbone

    def losses(self, model, batch):
        weights = {"main": 1.0, "auxiliary": self.settings.loss.auxiliary}
        masks = [target["mask"] for target in batch.targets]
        return {
            name: weight * sum(
                F.cross_entropy(row[:, : mask.shape[0], : mask.shape[1]][None].float(), mask[None])
                for row, mask in zip(logits, masks, strict=True)
            ) / len(masks)
            for (name, weight), logits in zip(weights.items(), model(batch.images), strict=True)
        }  # fmt: skip

    def predict(self, model, batch):
        logits = model(batch.images)[0].float()
        return [row[:, :h, :w] for row, (h, w) in zip(logits, batch.sizes.tolist(), strict=True)]

    def meter(self):
        return ConfusionMeter(self.names)

    def results(self, outputs, batch):
        return [Areas(row.argmax(0).cpu(), self.palette) if row.isfinite().all() else None for row in outputs]

    def pictures(self, meter, samples, folder, *, title=""):
        Image.fromarray(meter.confusion.numpy().astype("uint8")).save(folder / "masks.png")
        return [folder / "masks.png"]

    def record(self):
        return {"class_names": self.names, "palette": self.palette}

    @classmethod
    def restore(cls, record, settings):
        task = cls(settings)
        task.names, task.palette = record["class_names"], record["palette"]
        return task
