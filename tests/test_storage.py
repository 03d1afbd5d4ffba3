"""The file system behind one interface, and the snapshot that an operation takes of it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import Ran

from ckpttool.reading.snapshot import Snapshot
from ckpttool.reading.storage import Item, LocalStorage, RangedFile, storage_of


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


# --- What the storage refuses ----------------------------------------------------------------------------------


def refusing(monkeypatch: pytest.MonkeyPatch, name: str, error: type[OSError], number: int) -> None:
    """The file system of another user, or one that changes meanwhile: one name cannot be looked at."""
    real = os.stat

    def stat(path: object, *args: object, **kwargs: object) -> os.stat_result:
        if os.path.basename(os.fspath(path)) == name:  # type: ignore[call-overload]  # as os.stat takes it
            raise error(number, os.strerror(number), path)
        return real(path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", stat)
    monkeypatch.setattr(os, "lstat", stat)


def test_a_checkpoint_that_is_removed_while_its_directory_is_listed_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., Ran]
) -> None:
    for step in (1, 2, 3):
        torch.save({"w": torch.full((2,), float(step))}, tmp_path / f"model_{step}.pt")
    refusing(monkeypatch, "model_1.pt", FileNotFoundError, errno.ENOENT)
    ran = run("average", tmp_path, "-o", tmp_path / "out.pt")
    assert ran.exit_code == 0, ran.stderr
    assert torch.load(tmp_path / "out.pt")["w"].tolist() == [2.5, 2.5]


@pytest.mark.parametrize("command", [["average"], ["average", "--best", 1, "--metric", "x"], ["ema-apply"]], ids=str)
@pytest.mark.parametrize("listed", [True, False])
def test_a_path_that_may_not_be_looked_at_is_an_error_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., Ran], command: list[object], listed: bool
) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    torch.save({"w": torch.ones(2)}, tmp_path / "model_1.pt")
    refusing(monkeypatch, "locked", PermissionError, errno.EACCES)
    ran = run(*command, locked, *([tmp_path / "model_1.pt"] if listed else []), "-o", tmp_path / "out.pt")
    assert ran.exit_code in ({2, 6} if listed else {6})
    assert "Error: " in ran.stderr
    if ran.exit_code == 6:
        assert f"{locked}: cannot be" in ran.stderr
        assert "another user" in ran.stderr


def test_a_name_that_is_too_long_is_an_error_of_ours(run: Callable[..., Ran]) -> None:
    ran = run("average", "x" * 5000)
    assert ran.exit_code == 6
    assert ran.stderr.startswith("Error: xxx")


def test_an_unreadable_copy_next_to_the_checkpoints_is_no_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., Ran]
) -> None:
    for name in ("model_1.pt", "model_2.pt", "last.pt"):
        torch.save({"w": torch.ones(2)}, tmp_path / name)
    real = LocalStorage.open

    def opening(self: LocalStorage, path: Path) -> RangedFile:
        if path.name == "last.pt":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(self, path)

    monkeypatch.setattr(LocalStorage, "open", opening)
    assert run("average", tmp_path, "-o", tmp_path / "out.pt").exit_code == 0


def test_a_checkpoint_that_is_removed_before_it_is_opened_is_an_error_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., Ran]
) -> None:
    for step in (1, 2):
        torch.save({"w": torch.full((2,), float(step))}, tmp_path / f"model_{step}.pt")
    real = LocalStorage.list

    def listing(self: LocalStorage, directory: Path) -> list[Item]:
        items = real(self, directory)
        (tmp_path / "model_1.pt").unlink(missing_ok=True)
        return items

    monkeypatch.setattr(LocalStorage, "list", listing)
    ran = run("average", tmp_path, "-o", tmp_path / "out.pt")
    assert ran.exit_code == 6
    assert f"{tmp_path / 'model_1.pt'}: cannot be read (No such file or directory)" in ran.stderr
    assert "Was it removed meanwhile" in ran.stderr
