"""Models as files for other runtimes, each checked by its runtime against the model before it is kept.

Light to import: `export` brings in torch and what writes a format when it is called.
"""

from vision_ssm.exporting.settings import FORMATS, TARGETS

__all__ = ["FORMATS", "TARGETS", "export"]


def __getattr__(name: str) -> object:
    if name == "export":
        from vision_ssm.exporting.exports import export

        return export
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
