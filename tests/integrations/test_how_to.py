"""The Python of docs/integrations.md runs, each block by itself, in an empty folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

HOW_TO = Path(__file__).resolve().parents[2] / "docs" / "integrations.md"


def test_the_how_to_runs(tmp_path, monkeypatch):
    pytest.importorskip("segmentation_models_pytorch", reason="segmentation-models-pytorch is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("peft", reason="peft is not installed")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    blocks = re.findall(r"^```python\n(.*?)^```", HOW_TO.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 5
    for number, block in enumerate(blocks):
        names = {"__name__": __name__}  # each with its own imports, as somebody copies it
        exec(compile(block, f"{HOW_TO.name}, block {number}", "exec"), names)
        assert "import vision_ssm" in block, "without it timm does not know the models"
        if "UperNetForSemanticSegmentation" in names:
            with torch.no_grad():
                assert names["again"].eval()(torch.randn(1, 3, 64, 64)).logits.shape == (1, 21, 64, 64)
