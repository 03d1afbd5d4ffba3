"""What a file states a checksum of is compared with it while it is averaged, wherever its framework compares it."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Ran
from hypothesis import given
from hypothesis import strategies as st

from ckpttool.checksums import crc32c
from ckpttool.checksums.by_kind import checksum
from ckpttool.checksums.compiled import compiled_checksum
from ckpttool.engine import execute, execute_together
from ckpttool.errors import CkpttoolError, MismatchError, NonFiniteError, UnreadableError
from ckpttool.formats import open_checkpoint
from ckpttool.formats.tensorflow import entries as bundle_entries
from ckpttool.formats.tensorflow.entries import Entry
from ckpttool.planning.plan import Plan
from ckpttool.planning.planner import make_plan
from ckpttool.planning.request import Members, Policy
from ckpttool.reading.scratch import Scratch
from ckpttool.reading.sources import Sources
from ckpttool.reading.verification import Verification
from ckpttool.selection.discovery import from_paths
from ckpttool.tensors import Checksum, Extent

CHUNK = 100
"""Elements: the large tensor spans many of these, and small ones share one."""


def arrays(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    values = {"net/small": (3,), "net/large": (30, 41), "net/empty": (0, 2), "net/scalar": ()}
    made = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in values.items()}
    made["net/half"] = rng.standard_normal((7, 50)).astype(np.float16)
    made["net/ids"] = np.arange(250, dtype=np.int64)
    return made


def bundle(directory: Path, step: int, *, big_endian: bool = False) -> Path:
    """A TensorFlow checkpoint whose index has this step's values."""
    data, entries = b"", {}
    for key, array in {**arrays(step), "optimizer/momentum": np.ones(500, np.float32)}.items():
        raw = array.tobytes()
        number = bundle_entries.TF_NUMBERS[array.dtype.name]
        entries[key] = Entry(number, array.shape, 0, len(data), len(raw), crc32c.mask(crc32c.extend(0, raw)))
        data += raw
    directory.mkdir(exist_ok=True)
    (directory / f"ckpt-{step}.index").write_bytes(bundle_entries.index_bytes(entries))
    (directory / f"ckpt-{step}.data-00000-of-00001").write_bytes(data)
    return directory / f"ckpt-{step}.index"


def npz(directory: Path, step: int, *, fortran: bool = False) -> Path:
    """The same as NumPy writes it, with a configuration as Marian has it."""
    directory.mkdir(exist_ok=True)
    order = np.asfortranarray if fortran else np.ascontiguousarray
    made = {name.replace("/", "_"): order(array) for name, array in arrays(step).items() if array.shape}
    np.savez(directory / f"{step}.npz", **made, **{"special:model.yml": np.frombuffer(b"dim: 3\0" * 40, np.int8)})
    return directory / f"{step}.npz"


WRITERS = {"tensorflow": bundle, "npz": npz}
LARGE = {"tensorflow": "net/large", "npz": "net_large"}


def flip(extent: Extent, position: int, bit: int = 0) -> None:
    """Turn one bit over, as a disk does it: the times of the file stay. Negative positions count from the end."""
    status = extent.path.stat()
    data = bytearray(extent.path.read_bytes())
    data[extent.offset + position % extent.nbytes] ^= 1 << bit
    extent.path.write_bytes(data)
    os.utime(extent.path, ns=(status.st_atime_ns, status.st_mtime_ns))


def plan_of(paths: list[Path], output: Path, **options: Any) -> Plan:
    return make_plan(from_paths(paths), output, policy=Policy(**options))


def refused(plan: Plan, says: str, *, jobs: int = 2) -> UnreadableError:
    """The error, after making sure that there is no trace of an output."""
    before = sorted(plan.output.parent.iterdir())
    with pytest.raises(UnreadableError, match=says) as caught:
        execute(plan, jobs=jobs, chunk_elements=CHUNK)
    assert caught.value.exit_code == 6
    assert sorted(plan.output.parent.iterdir()) == before
    return caught.value


# --- Damage is found -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("member", [0, 2])
@pytest.mark.parametrize("position", [0, 4 * CHUNK, -1])
def test_one_flipped_bit_in_any_chunk_of_any_member_is_refused(
    tmp_path: Path, kind: str, member: int, position: int
) -> None:
    paths = [WRITERS[kind](tmp_path / "in", step) for step in (1, 2, 3)]
    storage = open_checkpoint(paths[member]).weights[LARGE[kind]].storage
    flip(storage, position)
    error = refused(plan_of(paths, tmp_path / f"out{paths[0].suffix if kind == 'npz' else ''}"), LARGE[kind])
    assert (error.path, error.tensor) == (storage.path, LARGE[kind])
    assert "checksum" in str(error)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("chunk", [1, 64, 1230, 1 << 18])
def test_sound_files_pass_whatever_the_chunks(tmp_path: Path, kind: str, chunk: int) -> None:
    paths = [WRITERS[kind](tmp_path / "in", step) for step in (1, 2, 3)]
    output = tmp_path / f"out{paths[0].suffix if kind == 'npz' else ''}"
    execute(plan_of(paths, output), jobs=3, chunk_elements=chunk)
    assert output.exists()


@pytest.mark.parametrize("kind", WRITERS)
def test_the_frameworks_own_reader_refuses_the_same(tmp_path: Path, kind: str) -> None:
    """NumPy here; TensorFlow says "Checksum does not match", in its own environment."""
    path = WRITERS[kind](tmp_path, 1)
    flip(open_checkpoint(path).weights[LARGE[kind]].storage, 5)
    if kind == "npz":
        with np.load(path) as archive, pytest.raises(zipfile.BadZipFile):
            archive["net_large"]


def test_a_wrong_checksum_in_the_index_is_refused(tmp_path: Path) -> None:
    paths = [bundle(tmp_path / "in", step) for step in (1, 2)]
    index = bundle_entries.read_index(paths[0])
    wrong = replace(index.entries["net/small"], crc=index.entries["net/small"].crc ^ 1)
    paths[0].write_bytes(bundle_entries.index_bytes({**index.entries, "net/small": wrong}))
    refused(plan_of(paths, tmp_path / "out"), "net/small")


def test_the_command_says_so_and_exits_with_6(tmp_path: Path, run: Callable[..., Ran]) -> None:
    paths = [bundle(tmp_path / "in", step) for step in (1, 2)]
    flip(open_checkpoint(paths[1]).weights["net/large"].storage, 17, bit=3)
    result = run("average", *map(str, paths), "-o", str(tmp_path / "out"))
    assert result.exit_code == 6
    assert "ckpt-2.data-00000-of-00001: net/large is damaged" in result.stderr.replace("\n", " ").replace("  ", " ")
    assert not (tmp_path / "out").exists()


def test_a_header_of_an_npz_member_is_part_of_what_is_checked(tmp_path: Path) -> None:
    paths = [npz(tmp_path / "in", step) for step in (1, 2)]
    storage = open_checkpoint(paths[0]).weights["net_large"].storage
    data = paths[0].read_bytes()
    padding = storage.offset - 2  # a space before the line's end
    assert data[padding : storage.offset] == b" \n"
    paths[0].write_bytes(data[:padding] + b"\t" + data[padding + 1 :])
    refused(plan_of(paths, tmp_path / "out.npz"), "net_large")


def test_what_is_copied_is_checked_as_well(tmp_path: Path) -> None:
    paths = [npz(tmp_path / "in", step) for step in (1, 2)]
    plan = plan_of(paths, tmp_path / "out.npz")
    flip(open_checkpoint(paths[1]).container.archive.extent("special:model.yml.npy"), -1)
    refused(plan, "what is copied from it")
    bundles = [bundle(tmp_path / "in", step) for step in (1, 2)]
    container = open_checkpoint(bundles[1]).container
    flip(container.extent(container.entries["optimizer/momentum"]), 7)
    assert execute(plan_of(bundles, tmp_path / "without")).bytes_written  # the slots are not read
    refused(plan_of(bundles, tmp_path / "with", keep_state=True), "what is copied from it")


def test_arrays_of_strings_are_checked_before_they_are_copied(tmp_path: Path) -> None:
    older, path = (bundle(tmp_path / "in", step) for step in (1, 2))
    index = bundle_entries.read_index(path)
    file = bundle_entries.data_file(path.with_suffix(""), 0, 1)
    words = [b"the", b"", b"words" * 50]
    lengths = crc32c.extend(0, b"".join(len(word).to_bytes(4, "little") for word in words))
    stored = crc32c.mask(lengths).to_bytes(4, "little")
    text = stored + b"".join(words)
    raw = b"\x03\x00\xfa\x01" + text
    entry = Entry(7, (3,), 0, file.stat().st_size, len(raw), crc32c.mask(crc32c.extend(lengths, text)))
    file.write_bytes(file.read_bytes() + raw)
    path.write_bytes(bundle_entries.index_bytes({**index.entries, "vocabulary": entry}))
    execute(plan_of([older, path], tmp_path / "out"))
    copied = open_checkpoint(tmp_path / "out").container
    assert copied.entries["vocabulary"].crc == entry.crc
    for position in (0, 1, 4, len(raw) - 1):
        flip(Extent(file, entry.offset, entry.nbytes), position)
        with pytest.raises(UnreadableError, match="vocabulary is damaged"):
            plan_of([older, path], tmp_path / "again")
        flip(Extent(file, entry.offset, entry.nbytes), position)


# --- The cause is named, not what follows from it --------------------------------------------------------------


def test_damage_that_makes_a_number_infinite_is_called_damage(tmp_path: Path) -> None:
    paths = [bundle(tmp_path / "in", step) for step in (1, 2)]
    file = open_checkpoint(paths[0]).weights["net/large"].storage
    data = bytearray(file.path.read_bytes())
    data[file.offset + 400 : file.offset + 404] = np.float32(np.nan).tobytes()
    file.path.write_bytes(data)
    refused(plan_of(paths, tmp_path / "out"), "net/large is damaged", jobs=1)
    entries = dict(bundle_entries.read_index(paths[0]).entries)
    raw = bytes(data[file.offset : file.offset + file.nbytes])
    entries["net/large"] = replace(entries["net/large"], crc=crc32c.mask(crc32c.extend(0, raw)))
    paths[0].write_bytes(bundle_entries.index_bytes(entries))
    with pytest.raises(NonFiniteError):  # as it was written
        execute(plan_of(paths, tmp_path / "out"), chunk_elements=CHUNK)


def test_damage_that_makes_integers_differ_is_called_damage(tmp_path: Path) -> None:
    paths = [bundle(tmp_path / "in", step) for step in (1, 2)]
    flip(open_checkpoint(paths[0]).weights["net/ids"].storage, 8)
    refused(plan_of(paths, tmp_path / "out", integers="error"), "net/ids is damaged", jobs=1)


def test_damage_that_unties_is_called_damage(tmp_path: Path) -> None:
    def tied(step: int, *, together: bool) -> Path:
        raw = arrays(step)["net/large"].tobytes()
        entry = Entry(1, (30, 41), 0, 0, len(raw), crc32c.mask(crc32c.extend(0, raw)))
        other = entry if together else replace(entry, offset=len(raw))
        path = tmp_path / f"ckpt-{step}.index"
        path.write_bytes(bundle_entries.index_bytes({"a": entry, "b": other}))
        path.with_suffix(".data-00000-of-00001").write_bytes(raw if together else raw + raw)
        return path

    paths = [tied(1, together=False), tied(2, together=True)]
    execute(plan_of(paths, tmp_path / "sound"), chunk_elements=CHUNK)
    flip(open_checkpoint(paths[0]).weights["b"].storage, 900)
    refused(plan_of(paths, tmp_path / "out"), ": b is damaged", jobs=1)
    flip(open_checkpoint(paths[0]).weights["b"].storage, 900)
    raw = bytearray(arrays(1)["net/large"].tobytes())
    raw[0] ^= 1
    index = bundle_entries.read_index(paths[0])
    other = replace(index.entries["b"], crc=crc32c.mask(crc32c.extend(0, bytes(raw))))
    flip(open_checkpoint(paths[0]).weights["b"].storage, 0)
    paths[0].write_bytes(bundle_entries.index_bytes({**index.entries, "b": other}))
    with pytest.raises(MismatchError, match="a and b differ"):  # as it was written
        execute(plan_of(paths, tmp_path / "out"), chunk_elements=CHUNK)


# --- Whatever is read in whatever way --------------------------------------------------------------------------


@pytest.mark.parametrize("position", [None, 0, -1])
def test_a_tensor_that_is_read_across_its_order_is_checked(tmp_path: Path, position: int | None) -> None:
    """Fortran order into C order: no chunk is a run of the file."""
    paths = [npz(tmp_path / "in", 1, fortran=True), npz(tmp_path / "in", 2)]
    if position is None:
        result = execute(plan_of(paths, tmp_path / "out.npz"), chunk_elements=CHUNK)
        sizes = [spec.nbytes for path in paths for spec in open_checkpoint(path).weights.values()]
        assert sum(sizes) <= result.bytes_read < sum(sizes) + 1000  # and the configuration
        return
    flip(open_checkpoint(paths[0]).weights["net_large"].storage, position)
    refused(plan_of(paths, tmp_path / "out.npz"), "net_large")


def test_several_averages_in_one_pass_are_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [bundle(tmp_path / "in", step) for step in (1, 2, 3)]
    plans = [plan_of(paths[:2], tmp_path / "a"), plan_of(paths[:2], tmp_path / "b", dtype="float16")]
    noted = []
    note = Verification.note
    monkeypatch.setattr(
        Verification, "note", lambda self, *part: (noted.append((self.position, part[1])), note(self, *part))[1]
    )
    execute_together(plans, chunk_elements=CHUNK)
    for plan in plans:
        shutil.rmtree(plan.output)
    sizes = [spec.storage.nbytes for path in paths[:2] for spec in open_checkpoint(path).weights.values()]
    assert sum(nbytes for _, nbytes in noted) == sum(sizes)
    flip(open_checkpoint(paths[0]).weights["net/half"].storage, -1)
    with pytest.raises(UnreadableError, match="net/half is damaged"):
        execute_together(plans, chunk_elements=CHUNK)


def test_one_file_as_two_members_is_no_damage(tmp_path: Path) -> None:
    path = bundle(tmp_path / "in", 1)
    plan = make_plan(Members(from_paths([path]).entries * 3), tmp_path / "out")
    execute(plan, chunk_elements=CHUNK)
    shutil.rmtree(plan.output)
    flip(open_checkpoint(path).weights["net/large"].storage, -1)
    refused(plan, "net/large is damaged")


def test_what_was_not_read_to_its_end_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No way is known to get there; if there is one, it shall not be silent."""
    paths = [bundle(tmp_path / "in", step) for step in (1, 2)]
    monkeypatch.setattr(Verification, "note", lambda *_: None)
    with pytest.raises(CkpttoolError, match="was not checked"):
        execute(plan_of(paths, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@given(
    data=st.binary(min_size=1, max_size=3000),
    cuts=st.sets(st.integers(1, 2999), max_size=12),
    kind=st.sampled_from(["crc32", "crc32c"]),
    seed=st.randoms(use_true_random=False),
    flipped=st.none() | st.integers(0, 2999),
)
def test_parts_of_any_length_in_any_order_are_the_whole(
    tmp_path_factory: pytest.TempPathFactory,
    data: bytes,
    cuts: set[int],
    kind: str,
    seed: random.Random,
    flipped: int | None,
) -> None:
    stated = Checksum(kind, zlib.crc32(data) if kind == "crc32" else crc32c.extend(0, data))  # type: ignore[arg-type]
    content = bytearray(data)
    if flipped is not None:
        content[flipped % len(data)] ^= 0x10
    file = tmp_path_factory.mktemp("x") / "data"
    file.write_bytes(b"before" + content)
    sources = Sources()
    source, position = sources.locate(Extent(file, 6, len(data)), "it")
    ends = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    parts = list(itertools.pairwise(ends))
    seed.shuffle(parts)
    verification = Verification(source, position, len(data), stated, "it")

    def note_all() -> None:
        for start, stop in parts:
            verification.note(start, stop - start, checksum(stated.kind, bytes(content[start:stop])))

    for check in (note_all, lambda: verification.read(Scratch())):
        if flipped is None:
            check()
        else:
            with pytest.raises(UnreadableError, match="it is damaged"):
                check()
    sources.close()


@given(st.integers(0, 2**32 - 1))
def test_a_masked_checksum_can_be_unmasked(crc: int) -> None:
    assert crc32c.unmask(crc32c.mask(crc)) == crc


# --- What torch states and does not compare ----------------------------------------------------------------------


COMPILED = pytest.mark.skipif(compiled_checksum() is None, reason="the compiled checksums are not built here")


def torch_files(directory: Path, *, computed: bool = True) -> list[Path]:
    paths = []
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(computed)
    try:
        for step in (1, 2, 3):
            paths.append(directory / f"{step}.pt")
            flat = torch.arange(100_000, dtype=torch.float32) + step
            torch.save({"large": flat.clone(), "part": torch.ones(9)[:4], "half": torch.ones(3).half()}, paths[-1])
    finally:
        torch.serialization.set_crc32_options(before)
    return paths


@COMPILED
def test_a_flipped_bit_in_a_record_of_torch_is_refused_and_named(tmp_path: Path) -> None:
    """Torch itself loads it without a word."""
    paths = torch_files(tmp_path)
    flip(open_checkpoint(paths[1]).weights["large"].storage, 123_456)
    assert torch.load(paths[1])["large"].shape == (100_000,)
    error = refused(plan_of(paths, tmp_path / "out.pt"), "large is damaged")
    assert (error.path, error.tensor) == (paths[1], "large")


@COMPILED
def test_records_of_torch_are_compared_where_they_are_read_from_end_to_end(tmp_path: Path) -> None:
    """A view of a part of a record does not make the rest of it be read."""
    paths = torch_files(tmp_path)
    result = execute(plan_of(paths, tmp_path / "out.pt"), chunk_elements=CHUNK)
    assert result.bytes_verified == 3 * (400_000 + 6)
    assert result.bytes_read == 3 * (400_000 + 6 + 16)


def test_torch_files_without_checksums_are_averaged(tmp_path: Path) -> None:
    paths = torch_files(tmp_path, computed=False)
    flip(open_checkpoint(paths[1]).weights["large"].storage, 123_456)  # no one can know
    assert execute(plan_of(paths, tmp_path / "out.pt")).bytes_verified == 0
