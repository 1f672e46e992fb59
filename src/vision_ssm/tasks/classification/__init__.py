"""Image classification: one class per image."""

from vision_ssm import moved
from vision_ssm.tasks.registry import TaskInfo

__all__ = ["TASK"]

moved.answer(__name__)

TASK = TaskInfo(
    name="classification",
    summary="One class per image, from a folder of class folders or a named data set.",
    settings="vision_ssm.tasks.classification.settings:ClassificationSettings",
    task="vision_ssm.tasks.classification.task:Classification",
    options="vision_ssm.tasks.classification.settings:ClassificationOptions",
    pictures=("confusion.png", "predictions.png", "mistakes.png", "calibration.png"),
    recognise="vision_ssm.data.labelled.layout:recognise",
    columns={"classes": [{"class": str, "probability": float}]},
    packing="vision_ssm.data.labelled.packed:ClassPacking",
)
