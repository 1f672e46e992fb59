"""Which output of a model stands for which class of the data, by their names."""

from __future__ import annotations

from collections.abc import Sequence

from vision_ssm.errors import DataError, suggestion

__all__ = ["match_names"]


def match_names(model_names: Sequence[str], data_names: Sequence[str], *, advice: str) -> list[int]:
    """Return, for each class of the data, the model output that stands for it. The data may lack classes.

    Args:
        model_names: in the order of the model's outputs.
        data_names: in the order of the data's classes.
        advice: what to do about names that differ, a sentence for the error.

    Raises:
        DataError: the data has classes that the model does not know; names them.
    """
    outputs = {name: index for index, name in enumerate(model_names)}
    unknown = [name for name in data_names if name not in outputs]
    if unknown:
        shown = ", ".join(repr(name) for name in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        unused = [name for name in model_names if name not in data_names]
        missing = ", ".join(repr(name) for name in unused[:5]) + (", ..." if len(unused) > 5 else "")
        raise DataError(
            f"{len(unknown)} of the data's {len(data_names)} classes are unknown to the weights: {shown}"
            f"{f'; not in the data: {missing}' if missing else ''}. {advice}{suggestion(unknown[0], unused)}"
        )
    return [outputs[name] for name in data_names]
