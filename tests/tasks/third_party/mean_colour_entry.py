from vision_ssm.settings import NotNegative, Section, setting
from vision_ssm.tasks.registry import TaskInfo
from vision_ssm.tasks.settings import TaskSettings


class ColourSection(Section):
    squared: NotNegative = setting(1.0, "Weight of the squared error.")


class ColourSettings(TaskSettings):
    colour: ColourSection = ColourSection()


TASK = TaskInfo("mean_colour", "The mean colour.", "mean_colour_entry:ColourSettings", "mean_colour:MeanColour")
