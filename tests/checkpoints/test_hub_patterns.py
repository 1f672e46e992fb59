"""Repositories whose files' names are on no record: the one that a pattern fits."""

from __future__ import annotations

from pathlib import Path

import pytest

from vision_ssm.checkpoints import hub
from vision_ssm.errors import NotFetchedError

FILES = ["README.md", "ViG_T.pth", "vig_s.pth", "vig_h_t.pth"]


@pytest.fixture
def fetched(monkeypatch, tmp_path):
    """What was asked of the hub, which has FILES; without a network the cache has them."""
    asked = []

    def fetch(repo, filename, **_):
        asked.append((repo, filename))
        return str(tmp_path / filename)

    for name in FILES:
        (tmp_path / name).touch()
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda repo, revision: FILES)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo, **_: str(tmp_path))
    return asked


@pytest.mark.parametrize("online", [True, False])
def test_the_one_file_that_fits_is_taken(fetched, monkeypatch, online):
    monkeypatch.setattr(hub, "_reachable", lambda: online)
    assert hub.download("who/what", "*vig[-_]t*") == Path(hub.download("who/what", "*vig[-_]t*"))
    assert fetched[0] == ("who/what", "ViG_T.pth")
    with pytest.raises(NotFetchedError, match=r"from huggingface.co/who/what \(3 of its files fit that: .*vig_s\.pth"):
        hub.download("who/what", "*vig*")
    with pytest.raises(NotFetchedError, match=r"could not get a file like \*vig\* from .*dict\(file='PATH'\) to timm"):
        hub.download("who/what", "*vig*")
    with pytest.raises(NotFetchedError, match=r"\(0 of its files fit that: README\.md, .*ViG_T\.pth"):
        hub.download("who/what", "*vig[-_]b*")
