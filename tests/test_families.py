"""The list of families: every row is whole, no family imports another, and a row is all that a new family takes."""

from __future__ import annotations

import inspect
import itertools
from pathlib import Path

import pytest
import timm
import torch
from timm.models import _registry as registry

import vision_ssm
from tests.toy_family import TOY, to_published
from vision_ssm.analysis import cost, model_table
from vision_ssm.checkpoints import load_published
from vision_ssm.errors import CheckpointError
from vision_ssm.families import DENOISING, FAMILIES, Family, family_of, named
from vision_ssm.models import all_variants, create_model, list_models
from vision_ssm.models.registration import register

ROOT = Path(__file__).resolve().parent.parent
EACH = pytest.mark.parametrize("family", [*FAMILIES, *DENOISING], ids=lambda family: family.name)


@EACH
def test_a_row_is_whole(family: Family) -> None:
    table = named(family.variants)
    assert all(row.name.startswith(f"{family.name}_") for row in table.VARIANTS)
    assert inspect.isclass(named(family.model))
    assert all(callable(getattr(named(family.layout), name)) for name in ("is_published", "to_ours", "to_published"))
    assert family.macs is None or callable(named(family.macs))
    assert family.dense is None or family.dense in {row.name for row in table.VARIANTS}
    heading = (ROOT / family.docs).read_text(encoding="utf-8").splitlines()[0]
    assert all(row.origin.paper in heading and row.origin.commit in heading for row in table.VARIANTS)


@EACH
def test_a_model_is_known_by_its_class(family: Family) -> None:
    cls = named(family.model)
    with torch.device("meta"):
        model = cls()
    assert family_of(model) is family
    model.__class__ = type("Derived", (cls,), {})
    assert family_of(model) is family
    assert family_of(torch.nn.ReLU()) is None


def test_a_family_imports_no_other() -> None:
    grimp = pytest.importorskip("grimp", reason="import-linter is not installed")
    graph = grimp.build_graph("vision_ssm")
    own = {
        family.name: [
            place.partition(":")[0]
            for place in (family.model, family.variants, family.layout, family.macs)
            if place is not None
        ]
        for family in (*FAMILIES, *DENOISING)
    }
    assert all(module in graph.modules for modules in own.values() for module in modules)
    for one, other in itertools.permutations(own, 2):
        chains = [graph.find_shortest_chain(a, b) for a, b in itertools.product(own[one], own[other])]
        assert not any(chains), chains


@pytest.fixture
def toy():
    FAMILIES.append(TOY)
    register(TOY)
    yield TOY
    FAMILIES.remove(TOY)
    registry._model_entrypoints.pop("toy_small")
    registry._clear_model_entries("toy_small")


def test_a_new_family_takes_one_row(toy: Family, tmp_path: Path) -> None:
    assert "toy_small" in list_models()
    assert timm.list_models("toy_*", pretrained=True) == ["toy_small.authors"]
    torch.manual_seed(0)
    source = create_model("toy_small", num_classes=3)
    images = torch.randn(2, 3, 16, 16)

    # Published weights, by hand and through timm, which also replaces the head for other classes.
    path = tmp_path / "toy.pth"
    torch.save({"model": to_published(source.state_dict()), "epoch": 1}, path)
    loaded = timm.create_model("toy_small", pretrained=True, pretrained_cfg_overlay={"file": str(path)})
    assert torch.equal(loaded(images), source(images))
    assert timm.create_model("toy_small", pretrained=True, num_classes=5, pretrained_cfg_overlay={"file": str(path)})(
        images
    ).shape == (2, 5)
    with pytest.raises(CheckpointError, match=r"1 missing: conv\.weight"):
        load_published(source, {"conv.bias": torch.zeros(8), **dict(source.head.state_dict(prefix="head."))})

    # Cost: 16 patches of 48 numbers to 8 channels; its publication leaves the head out.
    found = cost("toy_small")
    assert (found.macs, found.macs_all) == (16 * 48 * 8, 16 * 48 * 8 + 8 * 3)
    (row,) = model_table("toy_")
    assert (row.params, row.macs, row.height, row.top1) == (found.params, found.macs, 16, 12.5)
    assert (row.weights, row.licence, row.source) == ("https://example.com/toy.pth", "mit", "a note")
    assert "12.5 % top-1 (a note)" in inspect.getdoc(timm.model_entrypoint("toy_small"))


def test_the_list_was_left_as_it_was() -> None:
    assert TOY not in FAMILIES
    assert "toy_small" not in all_variants()
    assert not timm.is_model("toy_small")
    assert vision_ssm.list_models() == list_models()
