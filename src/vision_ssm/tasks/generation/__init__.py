"""Images of a class, made by a denoiser that learned to take noise away."""

from vision_ssm.tasks.registry import TaskInfo

__all__ = ["TASK"]

TASK = TaskInfo(
    name="generation",
    summary="Images of a class, learned from a folder of class folders or a named data set.",
    settings="vision_ssm.tasks.generation.settings:GenerationSettings",
    task="vision_ssm.tasks.generation.task:Generation",
    short={"autoencoder": "latents.autoencoder"},
    options="vision_ssm.tasks.generation.settings:GenerationOptions",
    evaluation=("steps", "sampler", "guidance", "guide_all", "autoencoder", "samples", "features", "classifier"),
    sampling=("steps", "sampler", "guidance", "guide_all", "autoencoder"),
    commands=("train", "evaluate", "sample"),
    pictures=("samples.png",),
    packing="vision_ssm.data.labelled.packed:ClassPacking",
)
