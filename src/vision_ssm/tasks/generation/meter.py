"""What an evaluation of a generator collects."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from vision_ssm.data.batches import Batch
from vision_ssm.tasks.generation.frechet import frechet_distance
from vision_ssm.tasks.meter import Critic
from vision_ssm.tasks.scores import Score, Table

__all__ = ["GenerationMeter", "Judges", "Made", "Outputs", "score_list"]

SHOWN = 10
"""Samples of a class that are kept to be looked at, and classes of which there are some."""

LOSS = Score("loss", "error of the noise", higher_is_better=False)


class Judges(NamedTuple):
    """Whom an evaluation by samples asks.

    Attributes:
        features: in whose features real and made images are compared.
        classifier: asked of what class samples are; None asks nobody.
        outputs: the classifier's output for each class of the generator.
        wanted: positions in the data for which a sample is made, of the class of the image there.
    """

    features: Critic
    classifier: Critic | None
    outputs: Sequence[int]
    wanted: frozenset[int]


class Made(NamedTuple):
    """A sample: the position in the data whose class and seed it has, its class, and what the classifier takes it for.

    ``taken`` is the classifier's output, -1 where none was asked.
    """

    position: int
    label: int
    taken: int


class Outputs(NamedTuple):
    """Of a batch: errors [B] of the noise, and in an evaluation by samples the images themselves."""

    errors: Tensor
    real: Sequence[Image.Image] = ()


def score_list(judges: Judges | None) -> tuple[Score, ...]:
    """The scores that there are, the primary one first: in training the error of the noise alone."""
    if judges is None:
        return (LOSS,)
    distance = f"Fréchet distance in features of {judges.features.source} (not FID)"
    scores = [Score("frechet", distance, higher_is_better=False)]
    if judges.classifier is not None:
        scores.append(Score("agreement", f"samples that {judges.classifier.source} takes for their class", "%"))
    return (*scores, LOSS)


class GenerationMeter:
    """The error of the noise, and of an evaluation by samples how near they are to the images.

    Args:
        class_names: of the generator.
        judges: None for the error alone.
        asked: how samples are made, in words.
    """

    def __init__(self, class_names: Sequence[str], judges: Judges | None = None, asked: str = "") -> None:
        self.class_names, self.judges, self.asked = tuple(class_names), judges, asked
        self.count = 0
        self._error = 0.0
        self._real: list[Tensor] = []
        self._features: list[Tensor] = []
        self._made: list[Made] = []
        self.unmade: list[tuple[int, int]] = []
        """(Position, class) of the samples that are still to be made and added, in the order of the data."""
        self.shown: dict[int, list[Image.Image]] = defaultdict(list)
        """Some samples by their class, to be looked at; of this process alone."""

    def update(self, outputs: Outputs, batch: Batch) -> None:
        """Add one batch."""
        self.count += len(batch.indices)
        self._error += float(outputs.errors.double().sum())
        if self.judges is None:
            return
        self._real.append(self.judges.features.features(outputs.real))
        places = zip(batch.indices.tolist(), batch.targets.tolist(), strict=True)
        self.unmade += [(position, label) for position, label in places if position in self.judges.wanted]

    def add(self, images: Sequence[Image.Image]) -> None:
        """Add the next samples, those of the first in ``unmade``."""
        if self.judges is None:
            raise TypeError("nobody judges samples")
        done, self.unmade = self.unmade[: len(images)], self.unmade[len(images) :]
        self._features.append(self.judges.features.features(images))
        asked = self.judges.classifier
        taken = [-1] * len(images) if asked is None else asked.classes(images)
        for (position, label), image, found in zip(done, images, taken, strict=True):
            self._made.append(Made(position, label, found))
            if label in self.shown or len(self.shown) < SHOWN:
                self.shown[label] = [*self.shown[label], image][:SHOWN]

    def state(self) -> tuple[int, float, list[Tensor], list[Tensor], list[Made]]:
        """The counts, features and samples of this process, without their pictures."""
        return self.count, self._error, self._real, self._features, self._made

    def merge(self, states: Sequence[tuple[int, float, list[Tensor], list[Tensor], list[Made]]]) -> None:
        """Take the union over the ``states`` of all processes."""
        counts, errors, real, features, made = zip(*states, strict=True)
        self.count, self._error = sum(counts), math.fsum(errors)
        self._real, self._features, self._made = (
            [item for part in parts for item in part] for parts in (real, features, made)
        )

    @property
    def made(self) -> tuple[Made, ...]:
        """The samples, in the order of the data."""
        return tuple(sorted(self._made))

    @property
    def frechet(self) -> float:
        """The squared Fréchet distance, see `frechet_distance`; nan before two images of each kind."""
        if not self._real or not self._features:
            return math.nan
        return frechet_distance(torch.cat(self._real), torch.cat(self._features))

    @property
    def agreement(self) -> float:
        """Share of samples that the classifier takes for the class asked for, in [0, 1]; nan without one."""
        if self.judges is None or self.judges.classifier is None or not self._made:
            return math.nan
        return sum(self._agrees(made) for made in self._made) / len(self._made)

    def _agrees(self, made: Made) -> bool:
        return self.judges is not None and self.judges.outputs[made.label] == made.taken

    def scores(self) -> dict[str, float]:
        """The values of `score_list`: distance and error from 0 up, agreement in [0, 1]."""
        known = {"frechet": self.frechet, "agreement": self.agreement}
        known["loss"] = self._error / self.count if self.count else math.nan
        return {score.name: known[score.name] for score in score_list(self.judges)}

    def details(self) -> dict[str, Any]:
        """How many samples were made and how, whose features and whose classes count; agreement by class."""
        if self.judges is None:
            return {}
        width = self._features[0].shape[1] if self._features else 0
        told: dict[str, Any] = {
            "samples": len(self._made),
            "sampling": self.asked,
            "features": {"weights": self.judges.features.source, "numbers": width, "is_fid": False},
        }
        if self.judges.classifier is not None:
            per_class = {self.class_names[label]: right / count for label, (right, count) in self._by_class().items()}
            told["classifier"] = {"weights": self.judges.classifier.source, "agreement": per_class}
        return told

    def _by_class(self) -> dict[int, tuple[int, int]]:
        """(Samples that are recognised, samples) of each class that has any."""
        found: dict[int, tuple[int, int]] = {}
        for made in self.made:
            right, count = found.get(made.label, (0, 0))
            found[made.label] = right + self._agrees(made), count + 1
        return dict(sorted(found.items()))

    def tables(self) -> list[Table]:
        """What was compared with what; and where a classifier was asked, its answers by class."""
        if self.judges is None:
            return []
        rows = [
            ("samples", f"{len(self._made):,}, {self.asked}"),
            ("real images", f"{self.count:,}, as large as the samples"),
            ("compared in", f"features of {self.judges.features.source}: a distance in them is not FID"),
        ]
        tables = [Table("What was compared", ("", ""), rows)]
        if self.judges.classifier is not None:
            share = Score("agreement", "", "%")
            by_class = [
                (self.class_names[label], f"{count:,}", share.text(right / count))
                for label, (right, count) in self._by_class().items()
            ]
            columns = ("class", "samples", "recognised")
            title = f"Samples that {self.judges.classifier.source} takes for the class asked for"
            tables.append(Table(title, columns, by_class, numeric=columns[1:]))
        return tables
