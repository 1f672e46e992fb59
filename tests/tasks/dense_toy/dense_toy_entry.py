from vision_ssm.settings import NotNegative, Section, setting
from vision_ssm.tasks.registry import TaskInfo
from vision_ssm.tasks.settings import TaskSettings


class LossSection(Section):
    auxiliary: NotNegative = setting(0.4, "Weight of the auxiliary head's loss.")


class DenseSettings(TaskSettings):
    loss: LossSection = LossSection()


TASK = TaskInfo(
    "dense_toy", "A class per pixel.", "dense_toy_entry:DenseSettings", "dense_toy:Dense", pictures=("masks.png",)
)
