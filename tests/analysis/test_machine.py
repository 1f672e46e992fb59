"""The report on this machine."""

from __future__ import annotations

import json

import torch

from vision_ssm.analysis import environment


def test_every_device_has_one_chosen_backend_and_a_reason_for_the_others(monkeypatch):
    monkeypatch.delenv("VISION_SSM_BACKEND", raising=False)
    found = environment()
    assert found.devices[0].device == "cpu"
    assert len(found.devices) == 1 + torch.cuda.device_count() + torch.backends.mps.is_available()
    for device in found.devices:
        assert sum(backend.chosen for backend in device.backends) == 1
        assert all(backend.reason for backend in device.backends)


def test_threads_are_those_torch_uses():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert environment().threads == 1
    finally:
        torch.set_num_threads(before)


def test_it_is_plain_values():
    found = environment()
    again = json.loads(json.dumps(found.to_dict()))
    assert again["devices"][0]["chosen"] == found.devices[0].chosen
    assert again["versions"]["timm"] == found.versions["timm"]
