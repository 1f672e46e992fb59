"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from vision_ssm.errors import CheckpointError, DataError
from vision_ssm.storage import require_writable, what_else, whole_file


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    for text in ("one", "two"):
        with whole_file(path) as part:
            assert part != path
            part.write_text(text)
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "trouble", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), ValueError("x")]
)
def test_a_failure_keeps_the_old_content_and_leaves_nothing_behind(tmp_path: Path, trouble: BaseException) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    expected = CheckpointError if isinstance(trouble, OSError) else type(trouble)
    with pytest.raises(expected) as caught, whole_file(path, error=CheckpointError) as part:
        part.write_text("half")
        raise trouble
    if isinstance(trouble, OSError):
        assert "a.txt': No space left on device" in str(caught.value)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("address", ["s3://bucket/found", "memory://found"])
def test_an_address_is_no_folder_to_write_to(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for given in (address, Path(address)):
        with pytest.raises(DataError, match="which is an address; give a folder of this machine"):
            require_writable(given)
    assert not any(tmp_path.iterdir())


def test_output_folder_not_writable(tmp_path: Path) -> None:
    require_writable(tmp_path / "runs" / "first")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "kept").mkdir()
    require_writable(tmp_path / "kept")
    assert list(tmp_path.rglob("*")) == [tmp_path / "kept"]
    (tmp_path / "kept").rmdir()
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot write to output folder '.*file/runs'.*choose another one"):
        require_writable(tmp_path / "file" / "runs")


def test_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Permissions do not bind root, so the refusal is made here.
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(DataError, match="Permission denied"):
        require_writable(tmp_path)


@pytest.mark.parametrize("name", ["a" * 251 + ".npz", "\u732b" * 83 + ".png"])
def test_a_name_of_the_greatest_length(tmp_path: Path, name: str) -> None:
    with whole_file(tmp_path / name) as part:
        part.write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_probe_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kill at any moment would leave is what the folder holds while the probe is open."""
    import tempfile

    real, seen = tempfile.TemporaryFile, []

    def watched(**options: object) -> object:
        file = real(**options)
        seen.append(list(tmp_path.iterdir()))
        return file

    monkeypatch.setattr("tempfile.TemporaryFile", watched)
    require_writable(tmp_path)
    assert seen == [[]]


def test_what_is_neither_file_nor_folder(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    (tmp_path / "file").touch()
    assert what_else(tmp_path / "link") == what_else(tmp_path / "pipe") == "a named pipe"
    assert what_else("/dev/zero") == "a device"
    assert {what_else(tmp_path / name) for name in ("file", "", "none", "\0")} == {None}
