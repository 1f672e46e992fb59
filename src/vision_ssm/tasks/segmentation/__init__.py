"""Semantic segmentation: one class per pixel."""

from vision_ssm.tasks.registry import TaskInfo

__all__ = ["TASK"]

TASK = TaskInfo(
    name="segmentation",
    summary="One class per pixel, from folders of images and masks, or COCO polygons.",
    settings="vision_ssm.tasks.segmentation.settings:SegmentationSettings",
    task="vision_ssm.tasks.segmentation.task:Segmentation",
    options="vision_ssm.tasks.segmentation.settings:SegmentationOptions",
    evaluation=("window", "stride", "scales", "flips"),
    recognise="vision_ssm.tasks.segmentation.layouts:recognise",
    pictures=("confusion.png", "predictions.png"),
    columns={
        "size": [int],
        "classes": [{"class": str, "index": int, "pixels": int, "share": float, "area_m2": float, "counts": str}],
        "mean_confidence": float,
    },
    packing="vision_ssm.tasks.segmentation.packed:MaskPacking",
)
