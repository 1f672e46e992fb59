"""``python -m vision_ssm`` is the ``vision-ssm`` command."""

from vision_ssm.cli.main import entry_point

if __name__ == "__main__":
    entry_point()
