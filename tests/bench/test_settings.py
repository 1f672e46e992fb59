"""What a benchmark may ask for, and in which order it is done."""

from __future__ import annotations

import pytest
import timm

from vision_ssm.bench import PRESETS, Settings
from vision_ssm.cli.bench import settings_of
from vision_ssm.cli.main import build_parser
from vision_ssm.errors import ConfigError

GOOD = {"models": ("a", "b"), "sizes": ((224, 224),), "threads": (1,)}


def test_a_group_holds_all_models_under_the_same_circumstances():
    settings = Settings(("a", "b+unfused"), ((32, 32), (32, 64)), (1, 2), (1, 8), ("float32", "bfloat16"))
    groups = list(settings.groups())
    assert len(groups) == settings.group_count == 16
    seen = set()
    for group in groups:
        assert [case.model for case in group] == ["a", "b+unfused"]
        assert len({(c.height, c.width, c.batch, c.dtype, c.threads, c.mode, c.device) for c in group}) == 1
        seen.add((group[0].height, group[0].width, group[0].batch, group[0].dtype, group[0].threads))
    assert len(seen) == 16


@pytest.mark.parametrize("memory", [True, False])
def test_the_command_recorded_asks_for_the_same_settings(memory):
    settings = Settings(
        ("vim_nano", "deit_tiny_patch16_224+unfused"),
        ((224, 224), (224, 320)),
        (1, 2),
        (1, 16),
        ("float32", "bfloat16"),
        mode="training",
        rounds=3,
        memory=memory,
    )
    program, _ = build_parser()
    options = program.parse_args(settings.command().split()[1:])
    assert settings_of(options) == settings


@pytest.mark.parametrize("name", PRESETS)
def test_presets_name_existing_models(name):
    settings = Settings(**PRESETS[name], threads=(2,))
    assert [model for model in settings.models if not timm.is_model(model.partition("+")[0])] == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": ()}, "models must name at least one value and none twice"),
        ({"models": ("a", "a")}, r"none twice, got \['a', 'a'\]"),
        ({"models": ("a+unfussed",)}, "after \\+ comes one of unfused, got 'unfussed'. Did you mean 'unfused'?"),
        ({"dtypes": ("bfloat",)}, "dtypes must be one of float32, bfloat16, got 'bfloat'. Did you mean 'bfloat16'?"),
        ({"mode": "train"}, "mode must be one of inference, training, got 'train'. Did you mean 'training'?"),
        ({"sizes": ((0, 32),)}, "sizes must be at least 1, got 0"),
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
    ],
)
def test_wrong_settings(changes, message):
    with pytest.raises(ConfigError, match=message.replace("?", "\\?")):
        Settings(**{**GOOD, **changes})
