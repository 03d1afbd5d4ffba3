"""torch files are read as extents and written as torch.save would, with torch itself as the judge."""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import os
import pickle
import pickletools
import shutil
import struct
import sys
import tarfile
import types
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 (its dtypes are found by name)
import numpy as np
import pytest
import torch
from filler import extent_bytes, fill
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpttool.errors import (
    MismatchError,
    UnreadableError,
    UnsupportedError,
    UsageError,
)
from ckpttool.formats import HEAD_BYTES
from ckpttool.formats.archives import zip_reader as zip_archive
from ckpttool.formats.pytorch import file as torch_file
from ckpttool.reading.snapshot import Snapshot
from ckpttool.tensors import DTYPES, Artifact, Checkpoint, OutputFile, OutputTensor, TensorId, TensorSpec, c_strides

LEGACY = {"_use_new_zipfile_serialization": False}


def save(value: Any, path: Path, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


def array(spec: TensorSpec) -> np.ndarray:
    """The values of a tensor, each fetched by its own index into the storage."""
    dtype = np.dtype(spec.dtype.name)
    raw = np.frombuffer(extent_bytes(spec.storage), np.uint8)
    raw = raw[: len(raw) // dtype.itemsize * dtype.itemsize].reshape(-1, dtype.itemsize)
    if spec.big_endian:
        raw = raw[:, ::-1]
    strides = c_strides(spec.shape) if spec.strides is None else spec.strides
    indices = np.full(spec.shape, spec.offset)
    for axis, stride in enumerate(strides):
        along = [1] * len(spec.shape)
        along[axis] = -1
        indices = indices + np.arange(spec.shape[axis]).reshape(along) * stride
    return np.frombuffer(raw[indices.reshape(-1)].tobytes(), dtype).reshape(spec.shape)


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    name = str(tensor.dtype).removeprefix("torch.")
    dense = tensor.detach().contiguous()
    return np.frombuffer(dense.reshape(-1).view(torch.uint8).numpy().tobytes(), np.dtype(name)).reshape(tensor.shape)


def same(left: np.ndarray, right: np.ndarray) -> bool:
    return (
        left.dtype.itemsize == right.dtype.itemsize and left.shape == right.shape and left.tobytes() == right.tobytes()
    )


def artifact_of(checkpoint: Checkpoint, **options: Any) -> Artifact:
    """Everything as it is in the checkpoint, equal specs tied."""
    tensors: dict[TensorId, OutputTensor] = {}
    ties: dict[TensorId, TensorId] = {}
    first: dict[TensorSpec, TensorId] = {}
    for identity, spec in checkpoint.tensors().items():
        tensors[identity] = OutputTensor(spec.dtype, spec.shape)
        if spec.numel and first.setdefault(spec, identity) != identity:
            ties[identity] = first[spec]
    options = {"template": checkpoint, "stem": "out", **options}
    return Artifact(tensors=options.pop("tensors", tensors), ties=options.pop("ties", ties), **options)


def write(artifact: Artifact, path: Path, contents: Mapping[TensorId, bytes]) -> Path:
    files = torch_file.lay_out(artifact)
    assert len(files) == 1
    fill(files, path, artifact, contents)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        for info in archive.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
    return path


def negated(checkpoint: Checkpoint, path: Path, **options: Any) -> Path:
    """The checkpoint written again, its floating weights with the other sign."""
    contents = {}
    for identity, spec in checkpoint.tensors().items():
        values = array(spec)
        contents[identity] = (-values if spec.dtype.is_averaged else values).tobytes()
    return write(artifact_of(checkpoint, **options), path, contents)


# --- Reading ------------------------------------------------------------------------------------------------------


def zoo() -> dict[str, torch.Tensor]:
    base = torch.arange(24, dtype=torch.float32)
    matrix = base.reshape(4, 6).clone()
    shared = torch.arange(10.0)
    return {
        "plain": matrix,
        "transposed": matrix.t(),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "strided": base[::3],
        "slice": base[5:9],
        "expanded": torch.tensor([[1.0], [2.0]]).expand(2, 5),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "tied.a": shared,
        "tied.b": shared,
        "tied.view": shared.view(10),
        "part.one": shared[:5],
        "part.two": shared[5:],
        "seven dimensions": torch.randn(1, 2, 1, 2, 1, 2, 1),
    }


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_every_view_is_read_as_torch_reads_it(tmp_path: Path, options: dict[str, Any]) -> None:
    tensors = zoo()
    checkpoint = torch_file.read(save(tensors, tmp_path / "x.pt", **options))
    assert list(checkpoint.weights) == list(tensors)
    for name, tensor in tensors.items():
        assert same(array(checkpoint.weights[name]), as_numpy(tensor)), name
        assert checkpoint.weights[name].shape == tuple(tensor.shape)
    assert checkpoint.weights["tied.a"] == checkpoint.weights["tied.b"] == checkpoint.weights["tied.view"]
    assert checkpoint.weights["part.one"] != checkpoint.weights["part.two"]
    assert checkpoint.weights["part.one"].storage == checkpoint.weights["tied.a"].storage


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", sorted(DTYPES))
def test_every_dtype_is_read_and_written(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    dtype = getattr(torch, name)
    if name.startswith("float8_e8m0"):
        tensor = torch.tensor([127, 1], dtype=torch.uint8).view(dtype)
    else:
        tensor = torch.tensor([0, 1, 1, 0]).to(dtype)
    checkpoint = torch_file.read(save({"x": tensor, "y": tensor[1:3]}, tmp_path / "x.pt", **options))
    assert checkpoint.weights["x"].dtype is DTYPES[name]
    assert same(array(checkpoint.weights["y"]), as_numpy(tensor[1:3]))
    contents = {identity: array(spec).tobytes() for identity, spec in checkpoint.tensors().items()}
    for template in (checkpoint, None):
        out = write(artifact_of(checkpoint, template=template), tmp_path / "out.pt", contents)
        back = torch.load(out, weights_only=True)
        assert back["x"].dtype is dtype
        assert same(as_numpy(back["y"]), as_numpy(tensor[1:3]))


def test_records_of_any_order_compression_and_directory_are_read(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(1000.0), "b": torch.arange(5), "c": torch.zeros(0)}
    original = save({"model": tensors, "step": 3}, tmp_path / "x.pt")
    with zipfile.ZipFile(original) as archive:
        records = {info.filename.split("/", 1)[1]: archive.read(info) for info in archive.infolist()}
    for index, (method, order) in enumerate(
        [(zipfile.ZIP_DEFLATED, 1), (zipfile.ZIP_STORED, -1), (zipfile.ZIP_DEFLATED, -1)]
    ):
        path = tmp_path / f"packed{index}.bin"
        with zipfile.ZipFile(path, "w", method) as archive:
            for name in list(records)[::order]:
                archive.writestr(f"an ödd näme/{name}", records[name])
        head = path.read_bytes()[:HEAD_BYTES]
        assert torch_file.recognise(path, head, Snapshot())
        checkpoint = torch_file.read(path)
        assert checkpoint.step == 3
        for name, tensor in tensors.items():
            assert same(array(checkpoint.weights[name]), as_numpy(tensor))
        assert (checkpoint.weights["a"].storage.deflated is not None) == (method == zipfile.ZIP_DEFLATED)


def test_two_records_of_one_name_are_refused_because_torch_may_read_either(tmp_path: Path) -> None:
    path = save({"a": torch.tensor([1.0, 2.0])}, tmp_path / "x.pt")
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("x/data/0", struct.pack("<2f", 7, 8))
    with pytest.raises(UnreadableError, match="two records named x/data/0"):
        torch_file.read(path)


def test_big_endian_storages_are_said_to_be(tmp_path: Path) -> None:
    path = save({"model": {"a": torch.tensor([1.0, 2.0])}}, tmp_path / "x.pt")
    swapped = tmp_path / "big.pt"
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(swapped, "w") as out:
        for info in archive.infolist():
            data = archive.read(info)
            if info.filename.endswith("byteorder"):
                data = b"big"
            if "/data/" in info.filename:
                data = np.frombuffer(data, "<f4").astype(">f4").tobytes()
            out.writestr(info.filename, data)
    assert torch.load(swapped, weights_only=True)["model"]["a"].tolist() == [1, 2]
    checkpoint = torch_file.read(swapped)
    assert checkpoint.weights["a"].big_endian
    assert array(checkpoint.weights["a"]).tolist() == [1, 2]
    out = negated(checkpoint, tmp_path / "out.pt")
    assert torch.load(out, weights_only=True)["model"]["a"].tolist() == [-1, -2]


def test_files_without_checksums_are_read(tmp_path: Path) -> None:
    tensor = torch.arange(4.0)
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        path = save({"a": tensor}, tmp_path / "y.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    spec = torch_file.read(path).weights["a"]
    assert same(array(spec), as_numpy(tensor))


def test_weights_copies_state_step_and_values_are_found(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2)).sum().backward()
    optimizer.step()
    path = save(
        {
            "model": model.state_dict(),
            "model_ema": {name: tensor + 1 for name, tensor in model.state_dict().items()},
            "optimizer": optimizer.state_dict(),
            "step": 12,
            "best": np.float64(0.25),
            "args": argparse.Namespace(lr=1),
        },
        tmp_path / "x.pt",
    )
    checkpoint = torch_file.read(path)
    assert checkpoint.section == "model"
    assert set(checkpoint.copies["model_ema"]) == {"weight", "bias"}
    assert checkpoint.step == 12
    assert checkpoint.values["best"] == 0.25
    assert checkpoint.state == ("optimizer",)
    assert checkpoint.files == (path,)
    assert list(torch_file.read(path, section="model_ema").weights) == ["weight", "bias"]
    with pytest.raises(UsageError):
        torch_file.read(path, section="nothing.here")


def test_an_ordered_dict_of_python_two_is_a_state_dict(tmp_path: Path) -> None:
    class OldDict(dict):
        def __reduce__(self) -> Any:
            return collections.OrderedDict, ([[key, value] for key, value in self.items()],)

    path = save({"state_dict": OldDict(a=torch.ones(2), b=torch.zeros(2), c=torch.ones(1))}, tmp_path / "x.pt")
    checkpoint = torch_file.read(path)
    assert list(checkpoint.weights) == ["a", "b", "c"]
    out = negated(checkpoint, tmp_path / "out.pt")
    assert {name: value.tolist() for name, value in torch.load(out, weights_only=True)["state_dict"].items()} == {
        "a": [-1, -1],
        "b": [0, 0],
        "c": [-1],
    }
    tensors = artifact_of(checkpoint).tensors
    fewer = artifact_of(checkpoint, tensors={identity: t for identity, t in tensors.items() if identity[1] != "b"})
    write(fewer, out, {("", "a"): bytes(8), ("", "c"): bytes(4)})
    assert list(torch.load(out, weights_only=True)["state_dict"]) == ["a", "c"]


# --- Refusals -----------------------------------------------------------------------------------------------------


def rezipped(source: Path, target: Path, change: Callable[[dict[str, bytes]], None], method: int = 0) -> Path:
    with zipfile.ZipFile(source) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    change(records)
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    return target


def test_torchscript_is_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), str(path))
    assert torch_file.recognise(path, path.read_bytes()[:HEAD_BYTES], Snapshot())
    with pytest.raises(UnsupportedError, match="TorchScript"):
        torch_file.read(path)


def test_the_tar_of_old_times_is_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    assert torch_file.recognise(path, path.read_bytes()[:HEAD_BYTES], Snapshot())
    with pytest.raises(UnsupportedError, match=r"PyTorch 0\.1"):
        torch_file.read(path)


@pytest.mark.parametrize(
    ("value", "said"),
    [({"a": 1}, "a dict of 1"), (argparse.Namespace(x=1), "argparse.Namespace"), ([1], "list"), (3, "int")],
)
def test_a_pickle_that_torch_did_not_write_is_refused_by_what_it_is(tmp_path: Path, value: Any, said: str) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(value))
    assert torch_file.recognise(path, path.read_bytes()[:HEAD_BYTES], Snapshot())
    with pytest.raises(UnsupportedError, match=said):
        torch_file.read(path)


def test_a_pickled_model_is_refused_by_its_class(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"torch\.nn\.modules\.linear\.Linear"):
        torch_file.read(save(torch.nn.Linear(2, 2), tmp_path / "x.pt"))


def odd_tensors() -> dict[str, torch.Tensor]:
    return {
        "quantized": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8),
        "sparse": torch.eye(3).to_sparse(),
        "meta": torch.empty(3, device="meta"),
        "conjugate": torch.tensor([1 + 2j]).conj(),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["quantized", "sparse", "meta", "conjugate"])
def test_tensors_that_cannot_be_averaged_are_refused_among_weights_and_kept_elsewhere(
    tmp_path: Path, kind: str
) -> None:
    odd = odd_tensors()[kind]
    with pytest.raises(UnsupportedError) as caught:
        torch_file.read(save({"model": {"a": torch.ones(2), "odd.one": odd}}, tmp_path / "x.pt"))
    assert caught.value.tensor == "model.odd.one"
    assert kind[:4] in caught.value.message
    checkpoint = torch_file.read(save({"model": {"a": torch.ones(2)}, "extra": [odd]}, tmp_path / "y.pt"))
    back = torch.load(negated(checkpoint, tmp_path / "out.pt"), weights_only=True)
    assert back["model"]["a"].tolist() == [-1, -1]
    if kind == "meta":
        assert back["extra"][0].is_meta
    elif kind == "sparse":
        assert torch.equal(back["extra"][0].to_dense(), odd.to_dense())
    else:
        assert torch.equal(back["extra"][0], odd)


def pickled(source: Path) -> bytes:
    with zipfile.ZipFile(source) as archive:
        return archive.read(f"{source.stem}/data.pkl")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"K\x06tq", b"\x8a\x06\x00\x00\x00\x00\x00\x01tq"),  # numel 2^40 in the storage's id
        (b"K\x06tq", b"J\xff\xff\xff\xfftq"),  # numel -1
        (b"K\x02K\x03\x86", b"K\x02K\x04\x86"),  # more elements than there are
        (b"K\x02K\x03\x86", b"J\xff\xff\xff\xffK\x03\x86"),
        (b"K\x02K\x03\x86", b"\x8a\x06\x00\x00\x00\x00\x00\x01K\x03\x86"),
        (b"QK\x00K\x02", b"QK\x01K\x02"),  # one element further
        (b"K\x03K\x01\x86", b"K\x03K\x02\x86"),  # strides that reach too far
        (b"K\x03K\x01\x86", b"K\x03J\xff\xff\xff\xff\x86"),  # a negative stride
        (b"K\x03K\x01\x86", b"K\x01\x85"),  # one stride for two dimensions
        (b"QK\x00K\x02", b"QNK\x02"),
        (b"FloatStorage", b"DoubleStorage"),
        (b"FloatStorage", b"UntypedStorage"),
        (b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x009"),  # a storage that is not there
        (b"X\x07\x00\x00\x00storage", b"X\x07\x00\x00\x00sturage"),
        (b"K\x02K\x03\x86q\x08K\x03K\x01\x86", b"J\x00\x00\x00\x7fK\x03\x86q\x08K\x00K\x00\x86"),  # 24 GB from 24 bytes
    ],
)
def test_numbers_that_cannot_be_true_are_refused(tmp_path: Path, old: bytes, new: bytes) -> None:
    path = save({"a": torch.arange(6.0).reshape(2, 3)}, tmp_path / "x.pt")
    data = pickled(path)
    assert old in data

    def change(records: dict[str, bytes]) -> None:
        records["x/data.pkl"] = data.replace(old, new, 1)

    broken = rezipped(path, tmp_path / "broken.pt", change)
    with pytest.raises(UnreadableError) as caught:
        torch_file.read(broken)
    assert str(broken) in caught.value.message


def test_a_record_that_is_missing_short_or_wrong_is_refused(tmp_path: Path) -> None:
    path = save({"a": torch.arange(6.0)}, tmp_path / "x.pt")

    def shorter(records: dict[str, bytes]) -> None:
        records["x/data/0"] = records["x/data/0"][:-4]

    changes: list[Callable[[dict[str, bytes]], Any]] = [
        shorter,
        lambda records: records.pop("x/data/0"),
        lambda records: records.update({"x/byteorder": b"middle"}),
        lambda records: records.update({"x/data.pkl": records["x/data.pkl"][:-20]}),
        lambda records: records.update({"x/data.pkl": b""}),
    ]
    for index, change in enumerate(changes):
        for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            broken = rezipped(path, tmp_path / f"broken{index}.pt", change, method)
            with pytest.raises(UnreadableError):
                torch_file.read(broken)
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        packed = rezipped(path, tmp_path / "packed.pt", dict.copy, method)
        with pytest.raises(UnsupportedError, match="compressed with"):
            torch_file.read(packed)


def test_a_wrong_checksum_of_the_pickle_is_refused(tmp_path: Path) -> None:
    path = save({"name": torch.arange(6.0)}, tmp_path / "x.pt")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"X\x04\x00\x00\x00name", b"X\x04\x00\x00\x00nama"))
    with pytest.raises(UnreadableError, match="checksum"):
        torch_file.read(path)


def test_an_encrypted_archive_is_refused(tmp_path: Path) -> None:
    path = save({"a": torch.ones(2)}, tmp_path / "x.pt")
    data = bytearray(path.read_bytes())
    at = 0
    while (at := data.find(b"PK\x01\x02", at)) >= 0:
        data[at + 8] |= 1
        at += 4
    path.write_bytes(data)
    with pytest.raises(UnsupportedError, match="encrypted"):
        torch_file.read(path)


def test_a_compressed_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zip_archive, "_MAX_INFLATED", 1 << 20)
    path = save({"a": torch.ones(2)}, tmp_path / "x.pt")

    def change(records: dict[str, bytes]) -> None:
        records["x/data.pkl"] = b"\x80\x02]" + b"0]" * 600_000 + b"."

    bomb = rezipped(path, tmp_path / "bomb.pt", change, zipfile.ZIP_DEFLATED)
    with pytest.raises(UnsupportedError, match="1200004 bytes"):
        torch_file.read(bomb)


def test_counts_of_the_old_format_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    path = save({"a": torch.arange(6.0), "b": torch.arange(6.0)}, tmp_path / "x.pt", **LEGACY)
    data = path.read_bytes()
    count = struct.pack("<Qf", 6, 0.0)
    assert data.count(count) == 2
    path.write_bytes(data.replace(count, struct.pack("<Qf", 5, 0.0), 1))
    with pytest.raises(UnreadableError, match="5 elements where 6"):
        torch_file.read(path)


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_a_pickle_that_wants_to_run_a_command_is_read_and_written_without(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    target = tmp_path / "was-run"
    path = save({"model": {"a": torch.ones(2)}, "evil": Evil(target)}, tmp_path / "x.pt", **options)
    checkpoint = torch_file.read(path)
    negated(checkpoint, tmp_path / "out.pt")
    assert not target.exists()


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_damage_ends_in_one_error_and_no_other(tmp_path: Path, options: dict[str, Any]) -> None:
    """Cut at every 97th byte, then with single bytes changed all over."""
    good = save(
        {"model": zoo(), "args": argparse.Namespace(x=1), "step": 3}, tmp_path / "good.pt", **options
    ).read_bytes()
    path = tmp_path / "bad.pt"

    def attempt(data: bytes, *, must_fail: bool) -> None:
        path.write_bytes(data)
        try:
            if torch_file.recognise(path, data[:HEAD_BYTES], Snapshot()):
                checkpoint = torch_file.read(path)
                torch_file.lay_out(artifact_of(checkpoint))
        except (UsageError, UnreadableError):
            return
        assert not must_fail or not torch_file.recognise(path, data[:HEAD_BYTES], Snapshot())

    for cut in range(1, len(good), 97):
        attempt(good[:cut], must_fail=True)
    for at in range(0, len(good), 61):
        for change in (0xFF, 0x01, 0x20):
            attempt(good[:at] + bytes((good[at] ^ change,)) + good[at + 1 :], must_fail=False)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_changes_of_the_pickle_end_in_one_error_and_no_other(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("fuzz")
    path = save({"model": zoo(), "step": 3}, directory / "x.pt")
    changed = bytearray(pickled(path))
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    broken = rezipped(path, directory / "y.pt", lambda records: records.update({"x/data.pkl": bytes(changed)}))
    with contextlib.suppress(UsageError, UnreadableError):
        torch_file.lay_out(artifact_of(torch_file.read(broken)))


def test_only_torch_files_and_pickles_are_recognised(tmp_path: Path) -> None:
    arrays = tmp_path / "x.npz"
    np.savez(arrays, a=np.ones(3))
    other = tmp_path / "x.zip"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("readme.txt", "hello")
    for path in (arrays, other):
        assert not torch_file.recognise(path, path.read_bytes()[:HEAD_BYTES], Snapshot())
    assert not torch_file.recognise(tmp_path, b"", Snapshot())
    assert not torch_file.recognise(tmp_path, struct.pack("<Q", 100) + b"{", Snapshot())


# --- Writing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_the_container_stays_and_the_weights_are_new(tmp_path: Path, options: dict[str, Any]) -> None:
    tensors = zoo()
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2)).sum().backward()
    optimizer.step()
    state = collections.OrderedDict(tensors)
    state._metadata = {"": {"version": 2}}
    original = {
        "model": state,
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
        "step": 3,
        "config": {"lr": 0.1, "names": ["a", "b"]},
    }
    checkpoint = torch_file.read(save(original, tmp_path / "x.pt", **options))
    out = negated(checkpoint, tmp_path / "out.pt")
    for mmap in (False, True):
        back = torch.load(out, weights_only=True, mmap=mmap)
        assert list(back) == ["model", "rng", "step", "config"]
        assert back["config"] == original["config"]
        assert torch.equal(back["rng"], original["rng"])
        assert back["model"]._metadata == state._metadata
        assert list(back["model"]) == list(tensors)
        for name, tensor in tensors.items():
            assert torch.equal(back["model"][name], -tensor.detach()), name
            assert type(back["model"][name]) is type(tensor)
        loaded = back["model"]
        assert loaded["tied.a"].data_ptr() == loaded["tied.b"].data_ptr() == loaded["tied.view"].data_ptr()
        assert loaded["part.one"].untyped_storage().nbytes() == 5 * 4
    kept = torch.load(negated(checkpoint, out, keep_state=True), weights_only=True)
    assert list(kept) == list(original)
    for name, value in original["optimizer"]["state"][0].items():
        assert torch.equal(kept["optimizer"]["state"][0][name], value)


def test_a_file_that_is_kept_whole_is_what_torch_makes_of_it(tmp_path: Path) -> None:
    """The records, their order, their places and all but the identity of the file are torch.save's own."""
    tensors = {
        "a": torch.arange(6.0).reshape(2, 3),
        "b": torch.arange(3),
        "empty": torch.zeros(0),
        "s": torch.tensor(1.0),
    }
    original = save(tensors, tmp_path / "out.pt")
    checkpoint = torch_file.read(original)
    contents = {identity: array(spec).tobytes() for identity, spec in checkpoint.tensors().items()}
    out = write(artifact_of(checkpoint), tmp_path / "written.pt", contents)
    with zipfile.ZipFile(original) as theirs, zipfile.ZipFile(out) as ours:
        assert theirs.namelist() == ours.namelist()
        for left, right in zip(theirs.infolist(), ours.infolist(), strict=True):
            assert (left.header_offset, left.file_size, left.flag_bits) == (
                right.header_offset,
                right.file_size,
                right.flag_bits,
            )
            if not left.filename.endswith("serialization_id"):
                assert theirs.read(left) == ours.read(right), left.filename
                assert left.CRC == right.CRC
    assert out.stat().st_size == original.stat().st_size


def test_the_places_that_torch_computes_are_those_in_the_file(tmp_path: Path) -> None:
    """torch.load(map_location="meta") computes where records are instead of looking."""
    tensors = {f"layer{i}.weight": torch.randn(i % 7, 3) for i in range(60)}
    checkpoint = torch_file.read(save({"model": tensors, "rng": torch.get_rng_state()}, tmp_path / "x.pt"))
    out = negated(checkpoint, tmp_path / "out.pt")
    meta = torch.load(out, weights_only=True, map_location="meta")["model"]
    written = torch_file.read(out).weights
    for name, tensor in tensors.items():
        if tensor.numel():
            assert meta[name].untyped_storage()._checkpoint_offset == written[name].storage.offset
            assert written[name].storage.offset % 64 == 0


def test_the_output_depends_on_its_contents_alone(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(4), "b": torch.randn(3)}
    save({"model": tensors, "s": {"x", "y", "z"}}, tmp_path / "x.pt")
    shutil.copy(tmp_path / "x.pt", tmp_path / "renamed.pth")
    first = negated(torch_file.read(tmp_path / "x.pt"), tmp_path / "one.pt").read_bytes()
    again = negated(torch_file.read(tmp_path / "renamed.pth"), tmp_path / "two.pt").read_bytes()
    assert first == again
    tensors["a"][0] += 1
    save({"model": tensors, "s": {"x", "y", "z"}}, tmp_path / "x.pt")
    other = negated(torch_file.read(tmp_path / "x.pt"), tmp_path / "one.pt")
    with zipfile.ZipFile(other) as left, zipfile.ZipFile(tmp_path / "two.pt") as right:
        assert left.read("out/.data/serialization_id") != right.read("out/.data/serialization_id")


def test_dtypes_shapes_and_strides_may_change(tmp_path: Path) -> None:
    tensors = {
        "half": torch.ones(2, 3, dtype=torch.float16),
        "eight": torch.ones(3).to(torch.float8_e4m3fn),
        "parameter": torch.nn.Parameter(torch.ones(2, 3)),
        "buffer": torch.nn.Buffer(torch.ones(2, 3)),
    }
    checkpoint = torch_file.read(save({"model": tensors}, tmp_path / "x.pt"))
    shapes = {
        "half": OutputTensor(DTYPES["float32"], (3, 2)),
        "eight": OutputTensor(DTYPES["bfloat16"], (3,)),
        "parameter": OutputTensor(DTYPES["float8_e5m2"], (2, 3), (1, 2)),
        "buffer": OutputTensor(DTYPES["float64"], (2, 3), (1, 2)),
    }
    artifact = artifact_of(checkpoint, tensors={("", name): tensor for name, tensor in shapes.items()})
    contents = {
        ("", "half"): np.arange(6, dtype="f4").tobytes(),
        ("", "eight"): np.ones(3, "bfloat16").tobytes(),
        ("", "parameter"): np.ones(6, "float8_e5m2").tobytes(),
        ("", "buffer"): np.arange(6, dtype="f8").tobytes(),
    }
    back = torch.load(write(artifact, tmp_path / "out.pt", contents), weights_only=True)["model"]
    assert back["half"].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert back["eight"].dtype is torch.bfloat16
    assert isinstance(back["parameter"], torch.nn.Parameter)
    assert back["parameter"].dtype is torch.float8_e5m2
    assert back["buffer"].tolist() == [[0, 2, 4], [1, 3, 5]]
    assert back["buffer"].stride() == (1, 2)


def test_what_is_tied_to_a_weight_elsewhere_is_renewed_with_it(tmp_path: Path) -> None:
    weight = torch.ones(3)
    stale = torch.full((3,), 5.0)
    checkpoint = torch_file.read(
        save(
            {"model": {"a": weight, "p": torch.nn.Parameter(weight)}, "best": [weight, weight.view(3, 1), stale]},
            tmp_path / "x.pt",
        )
    )
    back = torch.load(negated(checkpoint, tmp_path / "out.pt"), weights_only=True)
    assert back["best"][0].tolist() == [-1, -1, -1]
    assert back["best"][0].data_ptr() == back["model"]["a"].data_ptr() == back["model"]["p"].data_ptr()
    assert back["best"][1].tolist() == [[1], [1], [1]]
    assert back["best"][2].tolist() == [5, 5, 5]


def test_names_that_are_tied_in_the_template_can_be_untied(tmp_path: Path) -> None:
    weight = torch.ones(2)
    checkpoint = torch_file.read(save({"model": {"a": weight, "b": weight}, "x": weight}, tmp_path / "x.pt"))
    out = write(
        artifact_of(checkpoint, ties={}),
        tmp_path / "out.pt",
        {("", "a"): struct.pack("<2f", 3, 3), ("", "b"): struct.pack("<2f", 4, 4)},
    )
    back = torch.load(out, weights_only=True)
    assert back["model"]["a"].tolist() == [3, 3]
    assert back["model"]["b"].tolist() == [4, 4]
    assert back["x"].tolist() == [1, 1]


def test_averages_are_written_next_to_the_weights_or_left_out_whole(tmp_path: Path) -> None:
    weights = {"a": torch.ones(2), "b": torch.ones(3)}
    average = {name: tensor * 2 for name, tensor in weights.items()}
    checkpoint = torch_file.read(save({"model": weights, "model_ema": average, "keep": 1}, tmp_path / "x.pt"))
    back = torch.load(negated(checkpoint, tmp_path / "out.pt"), weights_only=True)
    assert back["model_ema"]["b"].tolist() == [-2, -2, -2]
    everything = artifact_of(checkpoint).tensors
    only = {identity: tensor for identity, tensor in everything.items() if not identity[0]}
    contents = {identity: bytes(tensor.nbytes) for identity, tensor in everything.items()}
    write(artifact_of(checkpoint, tensors=only), tmp_path / "out.pt", contents)
    assert list(torch.load(tmp_path / "out.pt", weights_only=True)) == ["model", "keep"]
    write(artifact_of(checkpoint, drop=(("keep",), ("not", "there"))), tmp_path / "out.pt", contents)
    assert list(torch.load(tmp_path / "out.pt", weights_only=True)) == ["model", "model_ema"]
    write(artifact_of(checkpoint, template=None), tmp_path / "out.pt", contents)
    plain = torch.load(tmp_path / "out.pt", weights_only=True)
    assert list(plain) == ["model", "model_ema"]
    again = torch_file.read(tmp_path / "out.pt")
    assert set(again.weights) == set(weights)
    assert set(again.copies["model_ema"]) == set(weights)


def test_without_a_template_the_file_is_a_state_dict(tmp_path: Path) -> None:
    tensors = {("", "a"): OutputTensor(DTYPES["float32"], (2,)), ("", "b"): OutputTensor(DTYPES["float32"], (2,))}
    artifact = Artifact(tensors, ties={("", "b"): ("", "a")}, stem="averaged model")
    out = write(artifact, tmp_path / "out.pt", {("", "a"): struct.pack("<2f", 1, 2)})
    back = torch.load(out, weights_only=True, mmap=True)
    assert back["b"].tolist() == [1, 2]
    assert back["a"].data_ptr() == back["b"].data_ptr()
    with zipfile.ZipFile(out) as archive:
        assert archive.namelist()[0] == "averaged model/data.pkl"
        assert sum("/data/" in name for name in archive.namelist()) == 1


def test_a_tensor_that_the_template_has_no_place_for_is_refused(tmp_path: Path) -> None:
    checkpoint = torch_file.read(save({"model": {"a": torch.ones(2)}}, tmp_path / "x.pt"))
    tensors = {**artifact_of(checkpoint).tensors, ("", "b"): OutputTensor(DTYPES["float32"], (2,))}
    with pytest.raises(MismatchError, match="b"):
        torch_file.lay_out(artifact_of(checkpoint, tensors=tensors))


def test_the_provenance_is_a_record_that_torch_ignores(tmp_path: Path) -> None:
    checkpoint = torch_file.read(save({"model": {"a": torch.ones(2)}}, tmp_path / "x.pt"))
    assert checkpoint.provenance is None
    provenance = {"members": [{"step": 3, "name": "ä"}], "tool": "x"}
    out = negated(checkpoint, tmp_path / "out.pt", provenance=provenance)
    assert torch_file.read(out).provenance == provenance
    assert torch.load(out, weights_only=True)["model"]["a"].tolist() == [-1, -1]
    again = negated(torch_file.read(out), tmp_path / "again.pt")
    assert torch_file.read(again).provenance is None


@pytest.fixture
def vanishing_class() -> Any:
    """A class that is gone when the checkpoint is read."""
    module = types.ModuleType("a_framework_that_is_not_installed")
    exec("class Config:\n    pass\nclass Vocabulary(dict):\n    pass", vars(module))
    for cls in (module.Config, module.Vocabulary):
        cls.__module__ = module.__name__
    sys.modules[module.__name__] = module
    yield module
    sys.modules.pop(module.__name__, None)


@pytest.mark.parametrize("protocol", [2, 4])
def test_objects_of_classes_that_are_not_installed_come_back(
    tmp_path: Path, vanishing_class: Any, protocol: int
) -> None:
    config = vanishing_class.Config()
    config.width, config.self = 3, config
    vocabulary = vanishing_class.Vocabulary(the=1, a=2)
    vocabulary.note = np.arange(3)
    original = {"model": {"a": torch.ones(2)}, "cfg": config, "vocab": vocabulary, "loss": np.float32(0.5)}
    path = save(original, tmp_path / "x.pt", pickle_protocol=protocol)
    del sys.modules[vanishing_class.__name__]
    out = negated(torch_file.read(path), tmp_path / "out.pt")
    sys.modules[vanishing_class.__name__] = vanishing_class
    back = torch.load(out, weights_only=False)
    assert back["cfg"].self is back["cfg"]
    assert back["cfg"].width == 3
    assert type(back["vocab"]) is vanishing_class.Vocabulary
    assert dict(back["vocab"]) == {"the": 1, "a": 2}
    assert back["vocab"].note.tolist() == [0, 1, 2]
    assert back["loss"] == np.float32(0.5)
    assert back["model"]["a"].tolist() == [-1, -1]


def test_a_gpu_location_loads_on_any_machine(tmp_path: Path) -> None:
    path = save({"model": {"a": torch.ones(2)}, "x": torch.zeros(2)}, tmp_path / "x.pt")

    def change(records: dict[str, bytes]) -> None:
        records["x/data.pkl"] = records["x/data.pkl"].replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:7")

    checkpoint = torch_file.read(rezipped(path, tmp_path / "gpu.pt", change))
    back = torch.load(negated(checkpoint, tmp_path / "out.pt"), weights_only=True)
    assert back["model"]["a"].tolist() == [-1, -1]
    assert back["x"].tolist() == [0, 0]


def test_loaders_find_what_they_insist_on_where_training_state_was(tmp_path: Path) -> None:
    moments = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1, "params": [0]}]}
    lightning = {
        "pytorch-lightning_version": "2.5",
        "state_dict": {"a": torch.ones(2)},
        "optimizer_states": [moments],
        "lr_schedulers": [{"last_epoch": 3, "_step_count": 4}],
        "loops": {"fit_loop": {"x": 1}},
    }
    back = torch.load(
        negated(torch_file.read(save(lightning, tmp_path / "l.ckpt")), tmp_path / "o.pt"), weights_only=True
    )
    assert back["optimizer_states"] == back["lr_schedulers"] == []
    assert back["optimizer_states"] is not back["lr_schedulers"]
    assert back["loops"] == lightning["loops"]
    fairseq = {
        "model": {"a": torch.ones(2)},
        "last_optimizer_state": moments,
        "optimizer_history": [{"num_updates": 7, "optimizer_name": "Adam"}],
    }
    checkpoint = torch_file.read(save(fairseq, tmp_path / "f.pt"))
    assert checkpoint.step == 7
    back = torch.load(negated(checkpoint, tmp_path / "o.pt"), weights_only=True)
    assert back["last_optimizer_state"] is None
    assert back["optimizer_history"] == fairseq["optimizer_history"]


def test_nothing_but_opcodes_that_weights_only_knows_is_written(tmp_path: Path) -> None:
    checkpoint = torch_file.read(save({"model": zoo(), "n": 1 << 40}, tmp_path / "x.pt"))
    out = negated(checkpoint, tmp_path / "out.pt")
    with zipfile.ZipFile(out) as archive:
        data = archive.read("out/data.pkl")
    pickletools.dis(data, out=io.StringIO())
    assert max(opcode.proto for opcode, _, _ in pickletools.genops(data)) <= 2


def sparse(output: OutputFile, path: Path) -> None:
    """Write a file with holes where the contents would be."""
    with path.open("wb") as file:
        file.truncate(output.nbytes)
        crcs = {slot.offset: 0 for slot in output.slots}
        for offset, data in (*output.literals, *(output.seal(crcs) if output.seal else ())):
            file.seek(offset)
            file.write(data)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system with holes")
def test_files_beyond_four_gigabytes_are_found_by_torch(tmp_path: Path) -> None:
    """The large tensor needs zip64 for its size, those behind it for their place."""
    sizes = {"a": 7, "large": 0x100000000 // 4 + 5, "b": 9, "c": 11}
    artifact = Artifact({("", name): OutputTensor(DTYPES["float32"], (size,)) for name, size in sizes.items()})
    path = tmp_path / "large.pt"
    (output,) = torch_file.lay_out(artifact)
    sparse(output, path)
    written = torch_file.read(path).weights
    reader = torch._C.PyTorchFileReader(str(path))
    meta = torch.load(path, weights_only=True, map_location="meta")
    for index, (name, size) in enumerate(sizes.items()):
        assert written[name].shape == (size,)
        assert written[name].storage.offset == reader.get_record_offset(f"data/{index}")
        assert meta[name].shape == (size,)
        assert meta[name].untyped_storage()._checkpoint_offset == written[name].storage.offset
    with zipfile.ZipFile(path) as archive:
        assert [info.file_size for info in archive.infolist() if "/data/" in info.filename] == [
            4 * size for size in sizes.values()
        ]
        assert archive.read("archive/version") == b"3\n"


def test_an_archive_says_what_is_missing(tmp_path: Path) -> None:
    path = save({"a": torch.ones(2)}, tmp_path / "x.pt")
    archive = zip_archive.open_archive(path)
    with pytest.raises(UnreadableError, match="nothing is missing"):
        archive.extent("nothing")
    with pytest.raises(UnreadableError):
        zip_archive.open_archive(tmp_path)
    path.write_bytes(b"junk" + path.read_bytes())
    with pytest.raises(UnreadableError):
        zip_archive.open_archive(path)
