"""Every row of every variants table: complete, and its figures are those of the model that it builds."""

from __future__ import annotations

import inspect

import pytest
import timm

from vision_ssm.analysis.model_cost import own_size_cost
from vision_ssm.errors import ConfigError
from vision_ssm.families import FAMILIES, named
from vision_ssm.models import all_variants, create_model
from vision_ssm.models.registry import is_ours
from vision_ssm.models.variant import Weights, full_name, list_aliases

# What is said where a model is used, not what it is: images and classes, training, the form for dense tasks.
USE = {
    *("img_size", "dynamic_img_size", "in_chans", "num_classes"),
    *("drop_rate", "drop_path_rate", "stage_norms"),
}
ROWS = {row.name: (family, row) for family in FAMILIES for row in named(family.variants).VARIANTS}


def test_no_name_is_taken_twice() -> None:
    assert len(ROWS) == sum(len(named(family.variants).VARIANTS) for family in FAMILIES) == len(all_variants())


@pytest.mark.parametrize("name", ROWS)
def test_every_option_is_written_out(name: str) -> None:
    family, row = ROWS[name]
    assert set(row.options) == set(inspect.signature(named(family.model)).parameters) - USE


@pytest.mark.parametrize("name", ROWS)
def test_parameters_and_multiply_adds_are_as_published(name: str) -> None:
    row = ROWS[name][1]
    size, params, macs = own_size_cost(name)
    assert (size, params, macs) == ((row.inputs.side, row.inputs.side), row.params, row.macs)
    if row.published_macs is not None:
        assert round(macs / 1e9, 1) == row.published_macs / 1e9


@pytest.mark.parametrize("name", ROWS)
def test_a_figure_has_its_source(name: str) -> None:
    row = ROWS[name][1]
    assert (row.published_macs is None) == (row.macs_source is None)
    assert (row.top1 is None) == (row.source is None)
    assert (row.weights is None) == (row.tag == "untrained")
    assert row.feature_cls in (None, "pyramid")


@pytest.mark.parametrize("name", ROWS)
def test_timm_is_told_what_the_row_says(name: str) -> None:
    row = ROWS[name][1]
    config = timm.get_pretrained_cfg(f"{name}.{row.tag}")
    assert (config.input_size[1], config.num_classes, config.license) == (
        row.inputs.side,
        row.inputs.classes,
        row.origin.licence,
    )
    entry = timm.model_entrypoint(name)
    assert name in timm.list_models(module=ROWS[name][0].variants.rpartition(".")[2])
    assert inspect.getdoc(entry).startswith(row.summary)
    assert f"{row.params / 1e6:.1f} M parameters" in entry.__doc__ or row.params < 2e6
    if row.top1 is not None:
        assert f"{row.top1:.1f} % top-1 ({row.source})" in entry.__doc__


def test_addresses() -> None:
    assert Weights("a.pth", page="https://example.com/v1").address == "https://example.com/v1/a.pth"
    assert Weights("a.pth", hub="who/what").address == "https://huggingface.co/who/what/resolve/main/a.pth"
    assert Weights("a.pth", hub="who/what@c0ffee").address == "https://huggingface.co/who/what/resolve/c0ffee/a.pth"


def test_short_names_are_those_of_one_model_each_and_build_it() -> None:
    aliases = list_aliases()
    assert aliases["vim_tiny"] == "vim_tiny_patch16_224" and aliases["vmamba_tiny"] == "vmamba_tiny_s1l8"
    assert len(aliases) == sum(row.alias is not None and row.feature_cls is None for row in all_variants().values())
    assert not set(aliases) & set(timm.list_models())
    for alias, name in aliases.items():
        assert full_name(alias) == full_name(name) == name
        assert is_ours(alias)
    assert (full_name("vim_tiny.tag"), full_name("resnet18")) == ("vim_tiny_patch16_224.tag", "resnet18")
    model = create_model("vim_tiny", depth=1)
    assert model.pretrained_cfg["architecture"] == "vim_tiny_patch16_224"
    with pytest.raises(ConfigError, match=r"there is no model 'vim_tinny'\. Did you mean 'vim_tiny'"):
        create_model("vim_tinny")
