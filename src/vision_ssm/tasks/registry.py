"""The one list of tasks: those of this library, and those that other packages register as entry points.

A package adds a task with an entry point of the group ``vision_ssm.tasks`` whose value is a `TaskInfo`:

    [project.entry-points."vision_ssm.tasks"]
    depth = "my_package.entry:TASK"

No torch here: what a task can be set to is known before the task itself is loaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vision_ssm.errors import ConfigError, DataError, suggestion

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

    from vision_ssm.settings import Section, Setting
    from vision_ssm.tasks.packing import Packing
    from vision_ssm.tasks.settings import TaskSettings
    from vision_ssm.tasks.task import Task

__all__ = ["BUILT_IN", "DEFAULT", "TaskInfo", "find_task", "looks_like", "task_names", "task_of"]

BUILT_IN = ("classification", "segmentation", "detection", "generation")
"""Folders of `vision_ssm.tasks`; each holds its `TaskInfo` as ``TASK``."""

DEFAULT = "classification"
"""The task of a recipe that names none."""

GROUP = "vision_ssm.tasks"


@dataclass(frozen=True)
class TaskInfo:
    """What is known of a task without loading it.

    What it names is loaded when it is asked for; that raises ConfigError where it cannot be.

    Attributes:
        name: as in recipes and weights files.
        summary: one line for the help.
        settings: ``module:Class`` of its settings, a `vision_ssm.tasks.settings.TaskSettings`; importing that module
            loads no torch.
        task: ``module:Class`` of the task itself; importing it may load torch.
        short: further options of ``vision-ssm train`` and the setting that each is short for, for instance
            ``{"classes": "data.classes"}``. Those for a setting that is true or false take no value.
        options: ``module:Class`` of what a prediction may be asked for, a `vision_ssm.settings.Section`; None for
            nothing. As light as the settings.
        evaluation: names of those options that an evaluation takes as well.
        sampling: names of those that the making of images takes.
        commands: of ``vision-ssm`` that can use its weights.
        pictures: names of the files that `vision_ssm.tasks.task.Task.pictures` may write into a run folder.
        recognise: ``module:function`` from a folder's path to why it can hardly be anything but data of this task, such
            as ``"masks/ beside images/"``, or None. As light as the settings, and it looks at names, not into images.
        formats: other programs' formats of predictions that `vision_ssm.tasks.task.Task.export` writes: name -> what it
            is, in a line for the help.
        columns: of a table of many results (`vision_ssm.tasks.result.Result.cells`): name -> str, int, float, or made
            of these, ``[kind]`` a list and ``{name: kind}`` a record; any value may be missing. Empty where results
            make no table.
        packing: ``module:Class`` of a `vision_ssm.tasks.packing.Packing`, of data in shards; None where its data cannot
            be packed.
    """

    name: str
    summary: str
    settings: str
    task: str
    short: Mapping[str, str] = field(default_factory=dict)
    options: str | None = None
    evaluation: tuple[str, ...] = ()
    sampling: tuple[str, ...] = ()
    commands: tuple[str, ...] = ("train", "evaluate", "predict", "features")
    pictures: tuple[str, ...] = ()
    recognise: str | None = None
    formats: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)
    packing: str | None = None

    def load_settings(self) -> type[TaskSettings]:
        """The class of its settings."""
        return cast("type[TaskSettings]", self._load(self.settings))

    def load_options(self) -> type[Section] | None:
        """The class of what a prediction may be asked for, if there is anything."""
        return None if self.options is None else cast("type[Section]", self._load(self.options))

    def options_for(self, command: str) -> dict[str, Setting]:
        """What ``command`` may be asked for, by name; nothing where it cannot use weights of this task."""
        from vision_ssm.settings import describe

        options = self.load_options() if command in self.commands else None
        taken = {"evaluate": self.evaluation, "sample": self.sampling}.get(command)
        known = {} if options is None else describe(options)
        return {name: entry for name, entry in known.items() if taken is None or name in taken}

    def recognises(self, folder: Path) -> str | None:
        """Why the folder can hardly be anything but data of this task; None where it can."""
        return None if self.recognise is None else cast("str | None", self._load(self.recognise)(folder))

    def load_packing(self) -> Packing | None:
        """How its data go into shards, if they can."""
        return None if self.packing is None else cast("Packing", self._load(self.packing)())

    def load(self) -> type[Task]:
        """The class of the task."""
        return cast("type[Task]", self._load(self.task))

    def _load(self, place: str) -> Any:
        module, _, name = place.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except Exception as error:  # whatever another package raises while it is imported
            raise ConfigError(f"{place} of the task {self.name!r} cannot be loaded: {error!r}.") from error


def task_names() -> list[str]:
    """Names of all tasks, those of this library first. Loads none of them."""
    return [*BUILT_IN, *sorted(_entry_points().names - set(BUILT_IN))]


def find_task(name: str) -> TaskInfo:
    """The task called ``name``.

    Raises ConfigError when there is none, naming the nearest one, or when the package that has it cannot be used.
    """
    if name in BUILT_IN:
        return cast(TaskInfo, importlib.import_module(f"vision_ssm.tasks.{name}").TASK)
    found = list(_entry_points().select(name=name))
    if not found:
        known = task_names()
        raise ConfigError(f"no task is called {name!r}.{suggestion(name, known)} Tasks: {', '.join(known)}.")
    packages = " and ".join(sorted(entry.dist.name if entry.dist else entry.value for entry in found))
    if len(found) > 1:
        raise ConfigError(f"{packages} each have a task called {name!r}; uninstall all but one.")
    try:
        info = found[0].load()
    except Exception as error:  # whatever another package raises while it is imported
        raise ConfigError(f"the task {name!r} of {packages} cannot be loaded: {error!r}.") from error
    if not isinstance(info, TaskInfo) or info.name != name:
        raise ConfigError(f"the task {name!r} of {packages} must be a TaskInfo of that name, got {info!r}.")
    return info


def looks_like(folder: str | Path, task: str) -> str:
    """Say which task other than ``task`` the folder is data of, and how to choose it; empty where none claims it."""
    name, reason = next(_claims(folder, but=task), ("", ""))
    return f"This looks like {name} ({reason}): --task {name}." if name else ""


def task_of(data: str | Path) -> str:
    """Return the name of the first task that claims a folder as its data; `DEFAULT` where none does."""
    return next(_claims(data), (DEFAULT, ""))[0]


def _claims(folder: str | Path, but: str = "") -> Iterator[tuple[str, str]]:
    """Names of the tasks that recognise a folder, with the reason."""
    from vision_ssm.data.files import looked_up
    from vision_ssm.data.shards import INDEX, packed_for

    if packed := packed_for(folder):
        if not but or find_task(but).packing != find_task(packed).packing:
            yield packed, f"{INDEX} says so"
        return
    try:
        path, kind = looked_up(folder)
    except DataError:  # opening it says so
        return
    for name in task_names() if kind == "folder" else []:
        try:
            reason = None if name == but else find_task(name).recognises(path)
        except (ConfigError, OSError):  # a broken package, or a folder that may not be read, which opening it says
            continue
        if reason is not None:
            yield name, reason


def _entry_points() -> EntryPoints:
    from importlib.metadata import entry_points

    return entry_points(group=GROUP)
