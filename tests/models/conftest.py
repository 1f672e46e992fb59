"""What the models' tests share."""

import pytest

from vision_ssm.ops import explain


@pytest.fixture
def backend(request, monkeypatch):
    if request.param == "cpu":
        status = next(s for s in explain() if s.name == "cpu")
        if not status.chosen:
            pytest.skip(f"no C++ kernel: {status.reason}")
    monkeypatch.setenv("VISION_SSM_BACKEND", request.param)
    return request.param
