from vision_ssm.settings import Section, setting
from vision_ssm.tasks.registry import TaskInfo
from vision_ssm.tasks.settings import TaskSettings


class ColourSection(Section):
    squared: float = setting(1.0, "Weight of the squared error.", at_least=0)


class ColourSettings(TaskSettings):
    colour: ColourSection = ColourSection()


TASK = TaskInfo("mean_colour", "The mean colour.", "mean_colour_entry:ColourSettings", "mean_colour:MeanColour")
