"""Images with annotated things in shards: ``key.jpg`` beside ``key.json``, the things in pixels of the image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vision_ssm.data.shards import ShardSplit
from vision_ssm.tasks.detection.things import Annotated, Listed, Thing

if TYPE_CHECKING:
    from vision_ssm.tasks.detection.sources import ObjectImages, Objects

__all__ = ["SUFFIX", "ObjectPacking", "annotated"]

SUFFIX = ".json"


class ObjectPacking:
    """How they get there, see `vision_ssm.tasks.packing.Packing`.

    ``{"size": [H, W], "objects": [{"label", "bbox": [left, top, right, bottom], "area", "crowd", "outline"}]}``
    """

    suffix = SUFFIX

    def about(self, samples: ObjectImages) -> dict[str, Any]:
        """Names and numbers of the classes."""
        return {"class_names": list(samples.class_names), "category_ids": list(samples.category_ids)}

    def target(self, samples: ObjectImages, index: int) -> tuple[bytes, dict[str, Any]]:
        """The things of an image, as it is trained with them; the image is decoded to have its size."""
        things: Objects = samples[index][1]
        columns = (things.labels.tolist(), things.boxes.tolist(), things.areas.tolist(), things.crowd.tolist())
        names = ("label", "bbox", "area", "crowd", "outline")
        objects = [dict(zip(names, row, strict=True)) for row in zip(*columns, things.outlines, strict=True)]
        value = {"size": list(things.size), "objects": objects}
        return json.dumps(value).encode(), value


def annotated(shards: ShardSplit) -> Annotated:
    """Return what the annotations of a split say; they are beside the tar files, too, so none is read."""
    images = []
    for path, entry in zip(shards.paths, shards.entries, strict=True):
        height, width = entry.value["size"]
        things = tuple(
            Thing(one["label"], tuple(one["bbox"]), one["outline"], one["area"], one["crowd"], None)
            for one in entry.value["objects"]
        )
        images.append(Listed(Path(path), Path(entry.tar), (height, width), things))
    about = shards.about
    names, ids = tuple(about["class_names"]), tuple(about["category_ids"])
    return Annotated(Path(shards.place), shards.fingerprint, names, ids, tuple(images), ())
