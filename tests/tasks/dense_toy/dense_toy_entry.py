from vision_ssm.settings import NotNegative, Section, setting
from vision_ssm.tasks.registry import TaskInfo
from vision_ssm.tasks.settings import TaskSettings


class LossSection(Section):
    auxiliary: NotNegative = setting(0.4, "Weight of the auxiliary head's loss.")


class DenseSettings(TaskSettings):
    loss: LossSection = LossSection()


def recognise(folder):
    return "it has a palette.json" if (folder / "palette.json").exists() else None


TASK = TaskInfo(
    "dense_toy", "A class per pixel.", "dense_toy_entry:DenseSettings", "dense_toy:Dense", pictures=("masks.png",),
    recognise="dense_toy_entry:recognise",
)  # fmt: skip
