"""`vision-ssm models` and `vision-ssm cost`: what they print."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import vision_ssm
from tests.cli.commands import python
from vision_ssm.analysis import model_table
from vision_ssm.models.registry import list_whole_models
from vision_ssm.models.variant import all_variants


def test_models_lists_every_registered_model_with_published_figures(run):
    outcome = run("models", "--json")
    assert outcome.code == 0
    rows = {row["name"]: row for row in json.loads(outcome.out)}
    assert set(rows) == {*vision_ssm.list_models(), *list_whole_models()}
    assert rows["vmamba_tiny_s1l8_upernet_ade20k"]["miou"] == 47.9
    assert rows["vmamba_tiny_s1l8_mask_rcnn_coco"]["ap_box"] == 47.3
    assert rows["vim_tiny_patch16_224"]["params"] == 7_148_008
    assert rows["vim_tiny_patch16_224"]["top1"] == 76.1
    assert rows["vim_nano"]["top1"] is None
    assert (rows["vim_nano"]["kind"], rows["dig_s2"]["kind"]) == ("backbone", "denoiser")
    assert rows["dig_s2"]["autoencoder"] == "stabilityai/sd-vae-ft-ema" and rows["dig_nano"]["autoencoder"] is None


def test_files_that_were_downloaded_are_shown(run, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    weights = all_variants()["vmamba_tiny_s1l8"].weights
    (folder / weights.file).write_bytes(bytes(3 * 2**20))
    rows = {row["name"]: row["file"] for row in json.loads(run("models", "--json").out)}
    assert rows["vmamba_tiny_s1l8"] == str(folder / weights.file)
    assert rows["vmamba_tiny_s2l5"] is None
    assert rows["vmamba_tiny_s1l8_upernet_ade20k"] is None
    outcome = run("models", "vmamba_tiny_s1l8")
    assert "3.0 MiB" in outcome.out
    assert f"Downloaded files are in {folder}" in outcome.out
    assert Path(torch.hub.get_dir()) / "checkpoints" == folder


def test_a_recount_says_the_same_as_the_table(run):
    outcome = run("models", "nano", "--recount", "--json")
    assert json.loads(outcome.out) == [row.to_dict() for row in model_table("nano")]


def test_the_list_needs_no_torch():
    done = python(
        "import sys; from vision_ssm.cli.main import main; main(['models']); sys.exit('torch' in sys.modules)"
    )
    assert done.returncode == 0
    assert "vim_nano" in done.stdout


def test_models_table_can_be_narrowed(run):
    outcome = run("models", "stride8")
    assert "vim_tiny_patch16_stride8_224" in outcome.out
    assert "78.3 %" in outcome.out
    assert "vim_nano" not in outcome.out
    assert "with heads" not in outcome.out
    outcome = run("models", "upernet")
    assert "47.9 %" in outcome.out
    assert "multiply-adds" not in outcome.out
    outcome = run("models", "dig_s")
    assert "4 x 32 x 32" in outcome.out and "latents of stabilityai/sd-vae-ft-ema" in outcome.out
    assert "with heads" not in outcome.out and "top-1" not in outcome.out


def test_cost_of_a_denoiser(run):
    outcome = run("cost", "dig_nano", "--img-size", "16x32", "--batch-size", "2")
    assert "dig_nano, 2 x 3 x 16 x 32" in outcome.out and "748,760" in outcome.out
    own, half = (json.loads(run("cost", "dig_nano", *size, "--json").out) for size in ((), ("--img-size", "32x16")))
    assert own["scan_macs"] == 2 * half["scan_macs"] == 4 * 3 * 16 * 32 * 3 * 256
    assert own["training_bytes"] > half["training_bytes"]


def test_cost_table(run):
    outcome = run("cost", "vim_tiny_patch16_224", "--img-size", "224x320", "--batch-size", "2", "--depth", "1")
    assert outcome.code == 0, outcome.err
    assert "vim_tiny_patch16_224, 2 x 3 x 224 x 320" in outcome.out
    assert "7,164,136" in outcome.out  # the published class built for that size
    assert "patch_embed" in outcome.out
    assert "blocks.0" not in outcome.out


def test_cost_json_equals_the_python_call(run):
    outcome = run("cost", "vim_nano", "--json")
    found = vision_ssm.cost("vim_nano")
    assert json.loads(outcome.out) == json.loads(json.dumps(found.to_dict()))


def test_a_swin_for_another_size_keeps_its_windows():
    # Its windows of 7 x 7 make the cost linear in pixels (padding aside); attention over scaled windows would not be.
    small, large = (vision_ssm.cost("swin_tiny_patch4_window7_224", size).macs for size in (224, 448))
    assert large == pytest.approx(4 * small, rel=0.01)


def test_cost_of_an_unknown_model(run):
    outcome = run("cost", "vim_tiny_patch16_225")
    assert outcome.code == 2
    assert "Did you mean 'vim_tiny_patch16_224'?" in outcome.err


def test_cost_of_an_image_smaller_than_a_patch(run):
    outcome = run("cost", "vim_tiny_patch16_224", "--img-size", "8")
    assert outcome.code == 2
    assert "patch" in outcome.err
