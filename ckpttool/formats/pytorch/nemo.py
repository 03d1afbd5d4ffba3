"""NeMo's exported models (.nemo), read and written in place: a tar archive of a model's weights and all that it needs.

    ./model_config.yaml                      the configuration
    ./model_weights.ckpt                     a state dict, as torch.save writes it
    ./0123abcd_tokenizer.model, ...          artifacts

Nothing is unpacked. The weights are a zip archive that is stored in the tar archive as it is, so that their bytes have
places in the .nemo file itself. The output is the newest member's archive, byte for byte, with other weights in it.

NeMo 1.7 and newer write plain tar archives (`SaveRestoreConnector`); older ones, which are compressed as a whole, and
those of models in pieces are refused with what has to be typed.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ckpttool.errors import UnreadableError, UnsupportedError
from ckpttool.formats.description import Implementation
from ckpttool.formats.pytorch import file as torch_file
from ckpttool.formats.pytorch.legacy import is_legacy_tar
from ckpttool.reading.opened import OpenedFile
from ckpttool.reading.snapshot import Snapshot
from ckpttool.tensors import Artifact, Checkpoint, Copy, Extent, OutputFile

if TYPE_CHECKING:
    import tarfile

__all__ = ["IMPLEMENTATION", "NAME", "NemoContainer", "lay_out", "read", "recognise"]

NAME = "nemo"

_WEIGHTS = "model_weights.ckpt"
_CONFIG = "model_config.yaml"
_BLOCK = 512
_RECORD = 20 * _BLOCK
"""Tar archives are filled up to a multiple of this."""
_MAX_HEADER = 1 << 20
"""Bytes of one extended header: a few names and times."""
_MAX_MEMBERS = 1 << 16
_MAX_LOOK = 256
"""Members to look at before a tar archive of another name is something else: a data set has millions."""


@dataclass(frozen=True)
class NemoContainer:
    """An archive, for writing one like it.

    Attributes:
        path: The file.
        weights: The checkpoint that the weights are on their own, in the format of torch files.
        header: The weights' header, one block.
        start: Where that begins; with an extended one that states their size, where that begins.
        stop: Where the next member begins.
        end: Where the last member ends.
    """

    path: Path
    weights: Checkpoint
    header: bytes
    start: int
    stop: int
    end: int


def recognise(path: Path, head: bytes, snapshot: Snapshot) -> bool:  # the same question to all formats
    """Whether a file is such an archive, or one that is compressed, of which `read` says what to do with it."""
    if snapshot.is_dir(path):
        return False
    if head[:2] == b"\x1f\x8b":
        return path.suffix.lower() == ".nemo" and _is_tar(_inflated(head))
    if not _is_tar(head) or is_legacy_tar(head):
        return False
    if path.suffix.lower() == ".nemo":
        return True
    try:
        first = islice(_members(path), _MAX_LOOK)
        return any(_plain_name(member).split("/")[0] in {_CONFIG, _WEIGHTS} for member in first)
    except UnreadableError:
        return False


def _is_tar(head: bytes) -> bool:
    return head[257:262] == b"ustar"


def _inflated(head: bytes) -> bytes:
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head, _BLOCK)
    except zlib.error:
        return b""


def read(path: Path, *, section: str | None = None, snapshot: Snapshot | None = None) -> Checkpoint:  # noqa: ARG001
    """Open an archive. The headers of its members are read, and the weights as a torch file of their own.

    Args:
        path: The file.
        section: Dotted key path of the weights in their file, where they are not found by themselves.
        snapshot: The operation's view of the storage; None: a new one.

    Raises:
        UnreadableError: The archive is truncated or damaged, has two files of weights, or a member that leads out of
            the directory that it would be unpacked in.
        UnsupportedError: It is compressed, or the weights are in pieces.
    """
    with OpenedFile(path) as file:
        compressed = file.read_at(0, 2) == b"\x1f\x8b"
    if compressed:
        raise UnsupportedError(
            f"{path}: a compressed .nemo archive, as NeMo wrote them before version 1.7",
            path=path,
            hint=f"Unpack its compression: gzip -dc {path.name} > {path.stem}-plain.nemo. NeMo reads that as well.",
        )
    members = list(islice(_members(path), _MAX_MEMBERS + 1))
    if len(members) > _MAX_MEMBERS:
        raise UnsupportedError(
            f"{path}: more than {_MAX_MEMBERS:,} files and directories, which no exported model has",
            path=path,
            hint="If it is one all the same, unpack it and average its model_weights.ckpt.",
        )
    named = [(_plain_name(member), member) for member in members]
    for _, member in named:
        _check_name(path, member)
    found = [member for name, member in named if name == _WEIGHTS]
    if not found:
        raise _without_weights(path, [name for name, _ in named])
    if len(found) > 1:
        raise UnreadableError(
            f"{path}: holds two files {_WEIGHTS}",
            path=path,
            hint=f"NeMo takes the last one: {_unpacking(path)}",
        )
    (member,) = found
    try:
        weights = torch_file.read_inside(path, member.offset_data, member.size, section=section)
    except UnsupportedError as error:
        if error.hint is None:
            error.hint = _unpacking(path)
        raise
    container = NemoContainer(
        path,
        weights,
        header=_block_at(path, member.offset_data - _BLOCK),
        # An extended header, before the plain one, has names of any length and times with a fraction.
        start=member.offset if "size" in member.pax_headers else member.offset_data - _BLOCK,
        stop=_end(member),
        end=_end(members[-1]),
    )
    return replace(weights, format=NAME, container=container)


def _unpacking(path: Path) -> str:
    return (
        f"Unpack each one: mkdir {path.stem} && tar -xf {path.name} -C {path.stem}. Average what is in there,"
        " and pack the result: tar -cf averaged.nemo -C DIRECTORY ."
    )


def _without_weights(path: Path, names: list[str]) -> UnsupportedError:
    folders = {name.split("/")[0] for name in names if "/" in name}
    if "model_weights" in folders:
        what, hint = (
            "the weights are sharded (model_weights/ is a directory of torch.distributed.checkpoint)",
            (
                f"Unpack each one: mkdir {path.stem} && tar -xf {path.name} -C {path.stem}. Average the directories"
                f" {path.stem}/model_weights, put the result in the place of one, and pack that: tar -cf averaged.nemo"
                f" -C {path.stem} ."
            ),
        )
    elif any(name.endswith(f"/{_WEIGHTS}") for name in names):
        what, hint = "the weights are in the files of several ranks", _unpacking(path)
    else:
        what = f"there is no {_WEIGHTS} in it"
        inside = ", ".join(name for name in names if name not in {"", "."})
        hint = f"In it are {inside[:200]}." if inside else "It is empty."
    return UnsupportedError(f"{path}: {what}", path=path, hint=hint)


# --- Tar archives ----------------------------------------------------------------------------------------------


def _blocks(nbytes: int) -> int:
    """What so many bytes take in an archive."""
    return -(-nbytes // _BLOCK) * _BLOCK


def _end(member: tarfile.TarInfo) -> int:
    return member.offset_data + (_blocks(member.size) if member.isreg() else 0)


def _plain_name(member: tarfile.TarInfo) -> str:
    """The name without the "./" that all of NeMo's begin with, and without any other way to say the same."""
    return PurePosixPath(member.name).as_posix()


def _check_name(path: Path, member: tarfile.TarInfo) -> None:
    """Make sure that unpacking the archive, and so the output, would write nowhere but in one directory."""
    place = PurePosixPath(member.name.replace("\\", "/"))
    if place.is_absolute() or ".." in place.parts or member.name[1:2] == ":":
        raise UnreadableError(
            f"{path}: the member {member.name!r} leads out of the directory that it would be unpacked in",
            path=path,
            hint="The file is malicious or malformed. Do not unpack it.",
        )


class _Headers:
    """A file for `tarfile` to read headers of, and no more: a header that claims to be large is not believed."""

    def __init__(self, file: OpenedFile) -> None:
        self._file = file
        self._at = 0

    def seek(self, offset: int) -> int:
        self._at = offset
        return offset

    def tell(self) -> int:
        return self._at

    def read(self, nbytes: int) -> bytes:
        if not 0 <= nbytes <= _MAX_HEADER:
            raise ValueError(f"a header of {nbytes} bytes")
        data = self._file.read_at(self._at, nbytes)
        self._at += len(data)
        return data


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    """What an archive holds, in its order; only headers are read.

    Raises:
        UnreadableError: It is truncated or damaged.
        UnsupportedError: There are links in it, devices, or files with holes. NeMo writes none.
    """
    import tarfile

    def damaged(what: object) -> UnreadableError:
        return UnreadableError(
            f"{path}: the tar archive is damaged: {what}",
            path=path,
            hint="The file is damaged or incomplete: the export may have been interrupted, or a copy was not finished.",
        )

    at = 0
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(OpenedFile(path))
            archive = stack.enter_context(tarfile.TarFile(fileobj=_Headers(file), mode="r"))  # type: ignore[arg-type]
            while (member := archive.next()) is not None:
                if member.size < 0 or member.offset < at:
                    raise damaged(f"{member.name!r} has {member.size} bytes")
                if not (member.isreg() or member.isdir()) or member.issparse():
                    raise UnsupportedError(
                        f"{path}: the member {member.name!r} is neither a plain file nor a directory",
                        path=path,
                        hint="NeMo puts nothing else into an archive. If you trust it, unpack and pack it again.",
                    )
                if "size" in archive.pax_headers:
                    raise damaged("one size is stated for all members")
                at = _end(member)
                if at > file.nbytes:
                    raise damaged(f"{member.name} ends at byte {at:,}, and the file at {file.nbytes:,}")
                yield member
            mark = file.read_at(at, _BLOCK)
        except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
            if isinstance(error, UnreadableError):
                raise
            raise damaged(error) from error
    if not mark or mark.strip(b"\0"):  # tarfile takes what is not a header for the end
        raise damaged(f"there is neither a member nor the end at byte {at:,}")


# --- Laying out ------------------------------------------------------------------------------------------------


def lay_out(artifact: Artifact) -> tuple[OutputFile, ...]:
    """Lay the newest member's archive out with other weights in it. All else is copied: names, order, times.

    Raises:
        UnsupportedError: There is no such member to follow.
    """
    template = artifact.template
    if template is None or template.format != NAME:
        raise UnsupportedError(
            "a .nemo archive is only written where the newest member is one, which has the rest of what must be in it",
            hint="Write the weights alone: end the output's name in .ckpt.",
        )
    container: NemoContainer = template.container
    inner = replace(artifact, template=container.weights, stem=_WEIGHTS.partition(".")[0])
    (weights,) = torch_file.lay_out(inner)
    header = _header(container.header, weights.nbytes)
    base = container.start + len(header)
    rest = base + _blocks(weights.nbytes)
    moved = [Copy(0, Extent(container.path, 0, container.start))] if container.start else []
    moved += [Copy(base + copy.offset, copy.source) for copy in weights.copies]
    if container.end > container.stop:
        moved.append(Copy(rest, Extent(container.path, container.stop, container.end - container.stop)))
    end = rest + container.end - container.stop + 2 * _BLOCK
    inner_seal = weights.seal
    assert inner_seal is not None

    def seal(checksums: Mapping[int, int]) -> list[tuple[int, bytes]]:
        inside = {offset - base: value for offset, value in checksums.items()}
        return [(base + offset, data) for offset, data in inner_seal(inside)]

    return (
        OutputFile(
            name="",
            nbytes=-(-end // _RECORD) * _RECORD,
            literals=((container.start, header), *((base + offset, data) for offset, data in weights.literals)),
            slots=tuple(replace(slot, offset=base + slot.offset) for slot in weights.slots),
            copies=tuple(moved),
            seal=seal,
            checksum=weights.checksum,
        ),
    )


def _block_at(path: Path, offset: int) -> bytes:
    with OpenedFile(path) as file:
        return file.read_at(offset, _BLOCK)


def _header(like: bytes, nbytes: int) -> bytes:
    """The header of a file that has another size, and all else as it was.

    A size has eleven octal digits, or from 8 GiB on, as GNU tar began it, a byte 0x80 and eleven of a number.
    """
    size = b"%011o\0" % nbytes if nbytes < 8**11 else b"\x80" + nbytes.to_bytes(11, "big")
    fields = like[:124] + size + like[136:148] + b" " * 8 + like[156:]
    return fields[:148] + b"%06o\0 " % sum(fields) + fields[156:]


IMPLEMENTATION = Implementation(recognise, read, lay_out)
