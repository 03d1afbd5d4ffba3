"""The file system behind one interface, and the snapshot that an operation takes of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ckpttool.reading.snapshot import Snapshot
from ckpttool.reading.storage import storage_of


def test_a_directory_is_listed_once_and_its_names_are_examined_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "b").write_bytes(b"12")
    (tmp_path / "a").mkdir()
    (tmp_path / "broken").symlink_to("nowhere")
    calls: list[object] = []
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: calls.append(path) or real(path))
    snapshot = Snapshot()
    assert snapshot.names(tmp_path) == ("a", "b", "broken")
    assert [(item.kind, item.nbytes, item.is_link) for item in snapshot.list(tmp_path).values()] == [
        ("directory", 0, False),
        ("file", 2, False),
        ("missing", 0, True),
    ]
    assert snapshot.is_dir(tmp_path / "a")
    assert snapshot.is_file(tmp_path / "b")
    assert not snapshot.exists(tmp_path / "broken")
    assert snapshot.item(tmp_path / "c") is None
    assert len(calls) == 1


def test_a_file_is_read_at_any_place_and_knows_when_it_was_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    file = storage_of(path).open(path)
    buffer = memoryview(bytearray(8))
    assert file.read_into(buffer, 4) == 6
    assert bytes(buffer[:6]) == b"456789"
    assert file.read_into(buffer, 10) == 0
    assert file.current_identity() == file.identity == storage_of(path).stat(path).identity
    path.write_bytes(b"longer than before")
    assert file.current_identity() != file.identity
    file.close()
    file.close()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_neither_a_file_nor_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    assert Snapshot().item(path).kind == "other"
    with pytest.raises(OSError, match="not a regular file"):
        storage_of(path).open(path)
    with pytest.raises(OSError, match="not a regular file"):
        storage_of(tmp_path).open(tmp_path)


def test_what_is_missing_is_told_from_what_may_not_be_seen(tmp_path: Path) -> None:
    assert Snapshot().item(tmp_path / "no" / "where") is None
    (tmp_path / "file").touch()
    assert Snapshot().item(tmp_path / "file" / "below") is None
    with pytest.raises(FileNotFoundError):
        Snapshot().list(tmp_path / "no")
