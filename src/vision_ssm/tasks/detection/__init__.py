"""Object detection and instance segmentation: boxes, and where the data have outlines, masks."""

from vision_ssm.tasks.registry import TaskInfo

__all__ = ["TASK"]

TASK = TaskInfo(
    name="detection",
    summary="Boxes and masks of objects, from COCO, YOLO or Pascal VOC annotations.",
    settings="vision_ssm.tasks.detection.settings:DetectionSettings",
    task="vision_ssm.tasks.detection.task:Detection",
    options="vision_ssm.tasks.detection.settings:DetectionOptions",
    evaluation=("window", "stride"),
    recognise="vision_ssm.tasks.detection.layouts:recognise",
    pictures=("precision_recall.png", "confusion.png", "predictions.png"),
    formats={
        "coco": "one JSON file with images, categories and annotations that have a score",
        "yolo": "a folder of text files: class, box or polygon in shares of the image, score",
        "labelstudio": "one JSON file of tasks with predictions, to be imported into Label Studio",
        "geojson": "a folder of feature collections, in map coordinates of scenes and in pixels of pictures",
        "points": "the same with the middle of each box instead of its outline",
    },
    columns={
        "size": [int],
        "detections": [
            {
                "class": str,
                "category_id": int,
                "bbox": [float],
                "score": float,
                "segmentation": {"size": [int], "counts": str},
            }
        ],
    },
    packing="vision_ssm.tasks.detection.packed:ObjectPacking",
)
