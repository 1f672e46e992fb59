"""Images made by a model that learned to make them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vision_ssm.data.preprocessing import Preprocessing
from vision_ssm.device import autocast
from vision_ssm.errors import ConfigError, suggestion
from vision_ssm.inference.naming import free_name
from vision_ssm.storage import whole_file
from vision_ssm.tasks.sheet import draw_sheet
from vision_ssm.tasks.task import Task
from vision_ssm.weights.files import Loaded, require_command
from vision_ssm.weights.opening import open_model

__all__ = ["Sampled", "Sheet", "in_batches", "sample"]

LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True, repr=False)
class Sampled:
    """One image that was made.

    Attributes:
        class_name: that was asked for.
        label: number of this class among those that the model knows, from 0.
        seed: that the image is random by; with it, the same weights and options make it again.
        image: RGB.
    """

    class_name: str
    label: int
    seed: int
    image: Image.Image

    def __repr__(self) -> str:
        return f"Sampled({self.class_name!r}, seed {self.seed}, {self.image.width}x{self.image.height})"


@dataclass(frozen=True, repr=False)
class Sheet:
    """What `sample` returns.

    Attributes:
        results: the images, class by class.
        weights: the file, or the name, that they came from.
    """

    results: tuple[Sampled, ...]
    weights: str

    def __repr__(self) -> str:
        return f"Sheet({len(self.results)} images by {self.weights!r})"

    @property
    def images(self) -> tuple[Image.Image, ...]:
        """The images alone, class by class."""
        return tuple(found.image for found in self.results)

    def picture(self) -> Image.Image:
        """Return all images on one picture, a line or more for each class."""
        rows: dict[tuple[int, str], list[Image.Image]] = {}
        for found in self.results:
            rows.setdefault((found.label, found.class_name), []).append(found.image)
        return draw_sheet([(name, images) for (_, name), images in rows.items()])

    def write(self, path: str | Path) -> None:
        """Write `picture` to a PNG file, whole or not at all. Raises DataError."""
        with whole_file(path) as part:
            self.picture().save(part, format="png")

    def write_images(self, folder: str | Path) -> None:
        """Write each image to a PNG file named after its seed, in a folder for each class. Raises DataError."""
        used: set[str] = set()
        names = {found.label: found.class_name for found in self.results}
        folders = {label: free_name(name, "", used) for label, name in names.items()}
        for found in self.results:
            with whole_file(Path(folder) / folders[found.label] / f"{found.seed}.png") as part:
                found.image.save(part, format="png")


def sample(
    weights: str | Path | Loaded,
    classes: str | int | Sequence[str | int] | None = None,
    *,
    count: int = 1,
    seed: int = 0,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    amp: str = "none",
    model: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Sheet:
    """Make images with a model of a task that makes some.

    An image depends on its class, its seed and the options; on what is made beside it only within rounding.

    Args:
        weights: a weights file, the folder of a run, a loaded model (`vision_ssm.load_model`), or with ``model`` a
            checkpoint without description, such as those of the official code.
        classes: one name or several, or numbers of classes, from 0; None for all that the model knows.
        count: images of each class.
        seed: of the first image of each class; the next ones have the numbers after it.
        batch_size: images at a time.
        device: None takes a GPU if there is one, else the CPU.
        amp: ``none``, ``bf16`` or ``fp16`` autocast.
        model: registered name of the model that a checkpoint belongs to.
        on_progress: called with (steps done, steps in all), over all batches.
        options: of the task. Generation: ``steps`` (250), ``sampler`` (``ddpm``), ``guidance`` (1.0), ``guide_all``,
            ``autoencoder``.

    Raises:
        ConfigError: an unknown class or option, one out of range, or a name that several classes have; CheckpointError:
        unusable weights, or of a task that makes no images.
    """
    if count < 1 or batch_size < 1:
        raise ConfigError(f"count and batch_size must be at least 1, got {count} and {batch_size}.")
    if not 0 <= seed <= LARGEST_SEED - count:
        raise ConfigError(f"seed must be a whole number from 0 and below 2^63, got {seed}.")
    loaded = open_model(weights, model=model, device=device)
    require_command(loaded.info, "sample")
    task = loaded.task()
    task.ask(options)
    known = loaded.info.class_names
    labels = _labels(known, classes)
    wanted = [(known[label], label, seed + number) for label in labels for number in range(count)]
    batches = in_batches(
        loaded,
        task,
        loaded.info.preprocessing,
        [label for _, label, _ in wanted],
        [number for _, _, number in wanted],
        batch_size=batch_size,
        amp=amp,
        on_progress=on_progress,
    )
    made = chain.from_iterable(batches)
    results = tuple(Sampled(*asked, image) for asked, image in zip(wanted, made, strict=True))
    return Sheet(results, loaded.info.source)


def in_batches(
    loaded: Loaded,
    task: Task,
    preprocessing: Preprocessing,
    labels: Sequence[int],
    seeds: Sequence[int],
    *,
    batch_size: int,
    amp: str,
    on_progress: Callable[[int, int], None] | None,
) -> Iterator[list[Image.Image]]:
    """Yield the images of `Task.sample`, a batch at a time; ``on_progress`` as of `sample`."""
    place, starts = next(loaded.model.parameters()).device, range(0, len(seeds), batch_size)
    for at, start in enumerate(starts):

        def on_step(done: int, total: int, before: int = at) -> None:
            if on_progress is not None:
                on_progress(before * total + done, len(starts) * total)

        some = slice(start, start + batch_size)
        with torch.inference_mode(), autocast(place, amp):
            made = task.sample(loaded.model, preprocessing, labels[some], seeds[some], on_step)
        yield made


def _labels(known: Sequence[str], classes: str | int | Sequence[str | int] | None) -> tuple[int, ...]:
    """The numbers of the classes asked for, each once. Raises ConfigError for one that is not known, or for none."""
    if classes is None:
        return tuple(range(len(known)))
    asked = [classes] if isinstance(classes, str | int) else classes
    if not asked:
        raise ConfigError("no class was asked for: name one or several, or None for all.")
    return tuple(dict.fromkeys(_label(known, name) for name in asked))


def _label(known: Sequence[str], asked: str | int) -> int:
    """The number of a class; text is a name first, and a number where no class is called that."""
    labels = [label for label, name in enumerate(known) if name == asked]
    if not labels and str(asked).isdecimal() and int(asked) < len(known):
        labels = [int(asked)]
    if not labels:
        shown = f"{', '.join(known[:20])}{', ...' if len(known) > 20 else ''}"
        raise ConfigError(f"these weights know no class {asked!r}.{suggestion(str(asked), known)} They know {shown}.")
    if len(labels) > 1:
        numbers = " and ".join(map(str, labels))
        raise ConfigError(f"{asked!r} is the name of classes {numbers}, counted from 0: give the number.")
    return labels[0]
