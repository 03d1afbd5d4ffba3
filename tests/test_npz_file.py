"""NumPy archives: read as numpy reads them, written so that numpy and Marian's reader take them, never unpickled."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import zipfile
import zlib

import ml_dtypes
import numpy as np
import pytest
from filler import artifact_like, fill, load, loaded, mean
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ckpttool.errors import UnreadableError, UnsupportedError, UsageError
from ckpttool.formats import open_checkpoint
from ckpttool.formats.npz import archive as npz_file
from ckpttool.formats.npz import header as npy
from ckpttool.tensors import DTYPES, Artifact, OutputTensor

YAML = "type: transformer\nversion: v1.12.0\n"


def marian(path, seed, *, save=np.savez):
    """What Marian saves: float32 arrays, and its configuration as bytes with a zero at the end."""
    rng = np.random.default_rng(seed)
    arrays = {
        "encoder_Wemb": rng.standard_normal((5, 4), np.float32),
        "decoder_ff_logit_out_b": rng.standard_normal((1, 5), np.float32),
        "special:model.yml": np.frombuffer(YAML.encode() + b"\0", np.int8),
    }
    save(path, **arrays)
    return arrays


def write(checkpoint, path, arrays=None, **changes):
    artifact = artifact_like(checkpoint, **changes)
    fill(npz_file.lay_out(artifact), path, artifact, loaded(checkpoint) if arrays is None else arrays)
    return open_checkpoint(path)


def arrays_of(path):
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def marian_reads(path):
    """The names and arrays that Marian finds: from local header to local header, by the sizes in the .npy headers."""
    found, file = {}, io.BytesIO(path.read_bytes())
    while True:
        header = file.read(30)
        if header[2:4] != b"\x03\x04":
            return found
        method, name_length, extra_length = header[8], *struct.unpack_from("<2H", header, 26)
        assert method == 0
        name = file.read(name_length).decode().removesuffix(".npy")
        file.read(extra_length)
        found[name] = np.lib.format.read_array(file)


# --- Headers ---------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4),
    st.sampled_from(sorted(npy.CODES)),
    st.booleans(),
)
def test_headers_are_numpys_own(shape, name, fortran):
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    array = np.zeros(shape, dtype, order="F" if fortran else "C")
    buffer = io.BytesIO()
    np.save(buffer, array)
    is_fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    written = npy.write(DTYPES[name], shape, fortran=is_fortran)
    assert buffer.getvalue()[: len(written)] == written
    header = npy.parse(written)
    assert (header.dtype, header.shape, header.fortran, header.nbytes) == (
        DTYPES[name],
        shape,
        is_fortran,
        len(written),
    )
    assert not header.big_endian


@pytest.mark.parametrize("name", ["float64", "float32", "float16", "complex64", "int64", "uint16", "int8", "bool"])
def test_big_endian_headers_are_understood(name):
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(2, np.dtype(name).newbyteorder(">")))
    header = npy.parse(buffer.getvalue()[:128])
    assert header.dtype == DTYPES[name]
    assert header.big_endian == (DTYPES[name].itemsize > 1)


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }", (3, 4)),
        ("{'shape': (3L, 4L), 'fortran_order': False, 'descr': '<f4'}", (3, 4)),  # Python 2
        ("{'descr':'<f4','fortran_order':False,'shape':(),}", ()),
        ("{'descr': '<i1', 'fortran_order': False, 'shape': (1100,), }", (1100,)),  # as Marian writes bytes
    ],
)
def test_headers_of_other_writers_are_understood(text, shape):
    assert npy.parse(raw_header(text)).shape == shape


def raw_header(text):
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text.encode("latin-1")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "{'descr': '<f4', 'fortran_order': False}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (3 4)}",
        "{'descr': '<f4', 'fortran_order': 0, 'shape': (3,)}",
        "{'descr': '<f1', 'fortran_order': False, 'shape': (3,)}",
        "{'descr': [('a', 7)], 'fortran_order': False, 'shape': (3,)}",
        "-" * 9000 + "1",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 30 + ",)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1," * 80 + ")}",
        "{'descr': __import__('os'), 'fortran_order': False, 'shape': (3,)}",
        "(" * 5000,
    ],
)
def test_headers_that_cannot_be_are_refused(text):
    with pytest.raises(ValueError, match=r"."):
        npy.parse(raw_header(text))


# --- Reading ---------------------------------------------------------------------------------------------------

ARRAYS = {
    "f32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(24, dtype=np.float64).reshape(2, 3, 4)),
    "half": np.array([1.5, -2], np.float16),
    "brain": np.array([[1.5], [-2]], ml_dtypes.bfloat16),
    "complex": np.array([1 + 2j], np.complex64),
    "big": np.arange(5, dtype=">f4"),
    "big_int": np.array([[258, 3]], dtype=">i8"),
    "flags": np.array([True, False]),
    "scalar": np.float32(3),
    "step": np.int64(1200),
    "empty": np.zeros((0, 3), np.float32),
    "a/b.c": np.ones((1, 1), np.uint8),
    "größe": np.ones(2, np.float32),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_array_is_the_one_that_numpy_reads(tmp_path, save):
    save(tmp_path / "a.npz", **ARRAYS)
    checkpoint = open_checkpoint(tmp_path / "a.npz")
    assert list(checkpoint.weights) == list(ARRAYS)
    assert checkpoint.step == 1200
    for name, expected in ARRAYS.items():
        array = load(checkpoint.weights[name])
        assert array.shape == expected.shape
        assert array.dtype == expected.dtype.newbyteorder("=")
        assert np.array_equal(array, expected.astype(array.dtype))
        assert (checkpoint.weights[name].storage.deflated is None) == (save is np.savez)
        assert checkpoint.weights[name].storage.checksum is not None or not expected.size
    assert checkpoint.weights["fortran"].strides == (1, 2, 6)


def test_marians_configuration_is_kept_and_not_averaged(tmp_path):
    marian(tmp_path / "model.iter100.npz", 1)
    checkpoint = open_checkpoint(tmp_path / "model.iter100.npz")
    assert list(checkpoint.weights) == ["encoder_Wemb", "decoder_ff_logit_out_b"]
    assert checkpoint.values["special:model.yml"] == YAML
    assert "special:model.yml" in checkpoint.notes[0]


def test_a_section_narrows_the_weights(tmp_path):
    np.savez(tmp_path / "a.npz", **{"params/w": np.ones(2), "ema/w": np.zeros(2)})
    checkpoint = npz_file.read(tmp_path / "a.npz", section="ema")
    assert list(checkpoint.weights) == ["ema/w"]
    with pytest.raises(UsageError, match="model"):
        npz_file.read(tmp_path / "a.npz", section="model")


@pytest.mark.parametrize("name", ["optimizer", "special:model.yml"])
@pytest.mark.parametrize("dtype", [object, np.dtype([("a", "<f4"), ("b", "O")])])
def test_pickles_are_refused_wherever_they_are(tmp_path, name, dtype):
    path = tmp_path / "a.npz"
    np.savez(path, **{"w": np.ones(2), name: np.zeros(1, dtype)})
    with pytest.raises(UnsupportedError, match="pickle") as caught:
        open_checkpoint(path)
    assert caught.value.tensor == name


@pytest.mark.parametrize(
    "array", [np.array(["a"]), np.array([b"x"]), np.zeros(1, "M8[s]"), np.zeros(1, [("a", "<f4")])]
)
def test_what_is_no_number_is_kept_as_it_is(tmp_path, array):
    np.savez(tmp_path / "a.npz", w=np.ones(2), extra=array)
    checkpoint = open_checkpoint(tmp_path / "a.npz")
    assert list(checkpoint.weights) == ["w"]
    write(checkpoint, tmp_path / "b.npz")
    assert np.array_equal(arrays_of(tmp_path / "b.npz")["extra"], array)


@pytest.mark.parametrize("dtype", [np.longdouble, ml_dtypes.float8_e4m3fn])
def test_unknown_dtypes_are_refused_by_name(tmp_path, dtype):
    np.savez(tmp_path / "a.npz", w=np.ones(2, dtype))
    with pytest.raises(UnsupportedError, match=r"w\.npy has elements of type"):
        open_checkpoint(tmp_path / "a.npz")


# --- Writing ---------------------------------------------------------------------------------------------------


def test_the_mean_of_marian_models_is_one_that_marian_and_numpy_read(tmp_path):
    saved = [marian(tmp_path / f"model.iter{i}00.npz", i) for i in (1, 2, 3)]
    members = [open_checkpoint(tmp_path / f"model.iter{i}00.npz") for i in (1, 2, 3)]
    out = write(members[-1], tmp_path / "avg.npz", mean(members), provenance={"members": ["größe"]})
    assert out.provenance == {"members": ["größe"]}
    for read in (arrays_of(tmp_path / "avg.npz"), marian_reads(tmp_path / "avg.npz")):
        assert list(read) == list(saved[0])
        assert read["special:model.yml"].tobytes() == YAML.encode() + b"\0"
        for name in ("encoder_Wemb", "decoder_ff_logit_out_b"):
            expected = (sum(arrays[name].astype(np.float64) for arrays in saved) / 3).astype(np.float32)
            assert read[name].dtype == np.float32
            assert np.array_equal(read[name], expected)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_archive_written_again_holds_the_same_in_the_same_order(tmp_path, save):
    save(tmp_path / "a.npz", **ARRAYS)
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("notes.txt", "kept")
    out = write(open_checkpoint(tmp_path / "a.npz"), tmp_path / "b.npz")
    assert out.provenance is None
    with zipfile.ZipFile(tmp_path / "b.npz") as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [*(f"{name}.npy" for name in ARRAYS), "notes.txt"]
        assert archive.read("notes.txt") == b"kept"
        with np.load(tmp_path / "b.npz") as read:
            for name, expected in ARRAYS.items():
                kind = ml_dtypes.bfloat16 if name == "brain" else expected.dtype
                array = read[name].view(ml_dtypes.bfloat16) if name == "brain" else read[name]
                assert np.array_equal(array, expected)
                assert array.dtype == np.dtype(kind).newbyteorder("=")
                assert array.flags.f_contiguous or expected.ndim < 2 or not expected.flags.f_contiguous


def test_records_are_the_bytes_that_numpy_writes(tmp_path):
    arrays = {name: array for name, array in ARRAYS.items() if not name.startswith("big")}
    np.savez(tmp_path / "a.npz", **arrays)
    write(open_checkpoint(tmp_path / "a.npz"), tmp_path / "b.npz")
    with zipfile.ZipFile(tmp_path / "a.npz") as one, zipfile.ZipFile(tmp_path / "b.npz") as other:
        assert [(i.filename, i.CRC, one.read(i)) for i in one.infolist()] == [
            (i.filename, i.CRC, other.read(i)) for i in other.infolist()
        ]


def test_tensors_of_other_formats_become_arrays(tmp_path):
    tensors = {
        ("", "a.weight"): OutputTensor(DTYPES["float32"], (2, 3)),
        ("ema", "a.weight"): OutputTensor(DTYPES["bfloat16"], (2, 3), (1, 2)),
    }
    arrays = {tensor: np.arange(6).reshape(2, 3) for tensor in tensors}
    artifact = Artifact(tensors)
    fill(npz_file.lay_out(artifact), tmp_path / "a.npz", artifact, arrays)
    read = arrays_of(tmp_path / "a.npz")
    assert np.array_equal(read["a.weight"], arrays["", "a.weight"])
    assert np.array_equal(read["ema/a.weight"].view(ml_dtypes.bfloat16), arrays["", "a.weight"])


def test_what_an_archive_cannot_hold_is_refused_before_anything_is_written():
    weight = OutputTensor(DTYPES["float8_e4m3fn"], (2,))
    with pytest.raises(UnsupportedError, match=r"w.*float8_e4m3fn"):
        npz_file.lay_out(Artifact({("", "w"): weight}))
    both = {("", name): OutputTensor(DTYPES["float32"], (2,)) for name in "ab"}
    with pytest.raises(UnsupportedError, match="b is tied to a"):
        npz_file.lay_out(Artifact(both, ties={("", "b"): ("", "a")}))


def test_too_many_members_for_a_comment_are_counted(tmp_path):
    np.savez(tmp_path / "a.npz", w=np.ones(2))
    members = [{"name": f"model.iter{i}.npz"} for i in range(5000)]
    out = write(
        open_checkpoint(tmp_path / "a.npz"), tmp_path / "b.npz", provenance={"operation": "ema", "members": members}
    )
    assert out.provenance == {"operation": "ema", "members": 5000}


def test_archives_beyond_four_gigabytes_say_so(tmp_path):
    """Only the headers are made: sizes, places and checksums of a 5 GiB array and of what follows it."""
    tensors = {
        ("", name): OutputTensor(DTYPES["float32"], shape) for name, shape in {"a": (5 << 28,), "b": (2,)}.items()
    }
    (file,) = npz_file.lay_out(Artifact(tensors))
    checksums = {file.slots[0].offset: 1, file.slots[1].offset: zlib.crc32(bytes(8))}
    with (tmp_path / "a.npz").open("wb") as out:
        out.truncate(file.nbytes)
        for offset, data in file.seal(checksums):
            out.seek(offset)
            out.write(data)
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert [i.file_size for i in archive.infolist()] == [(5 << 30) + 128, 8 + 128]
        assert archive.infolist()[1].header_offset > 1 << 32
        with archive.open("b.npy") as record:
            assert np.array_equal(np.lib.format.read_array(record), [0, 0])
    checkpoint = open_checkpoint(tmp_path / "a.npz")
    assert [spec.storage.offset for spec in checkpoint.weights.values()] == [slot.offset for slot in file.slots]


# --- Damage ----------------------------------------------------------------------------------------------------


def test_sizes_that_do_not_fit_the_shape_are_refused(tmp_path):
    header = raw_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000,), }")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("w.npy", header + bytes(8))
    with pytest.raises(UnreadableError, match="8 bytes"):
        open_checkpoint(tmp_path / "a.npz")


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_damage_opens_or_is_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    save = data.draw(st.sampled_from([np.savez, np.savez_compressed]))
    marian(path, 1, save=save)
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content)))
    content[at : at + data.draw(st.integers(0, 20))] = data.draw(st.binary(max_size=20))
    path.write_bytes(content)
    with contextlib.suppress(UnreadableError):
        npz_file.read(path)


@settings(max_examples=200, deadline=None)
@given(st.text("{}'descr:fotan_shpTuFl<4V2()[],0129 \\", max_size=60))
def test_any_text_is_a_header_or_a_value_error(text):
    with contextlib.suppress(ValueError, EOFError):
        npy.parse(raw_header(text))


def test_a_comment_of_someone_else_is_no_provenance(tmp_path):
    np.savez(tmp_path / "a.npz", w=np.ones(2))
    for comment in (b"by hand", b"[1]", json.dumps({"ckpttool": 3}).encode()):
        with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
            archive.comment = comment
        assert open_checkpoint(tmp_path / "a.npz").provenance is None
