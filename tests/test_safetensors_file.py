"""safetensors files: what its own parser refuses is refused, what it writes is read, what is written it loads."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from plans import build_plan
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, load_model, save_file, save_model

from ckpttool.engine.run import execute
from ckpttool.errors import UnreadableError, UnsupportedError
from ckpttool.formats import safetensors as safetensors_file
from ckpttool.reading.snapshot import Snapshot
from ckpttool.reading.values import read_values
from ckpttool.tensors import DTYPES, Artifact, OutputTensor

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
EIGHT = bytes(8)


def write(path: Path, header, data: bytes = b"", length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def entry(**changes):
    return {**ENTRY, **changes}


BAD = {
    "an empty header": (b"", b""),
    "not JSON": (b"{notjson", b""),
    "not UTF-8": (b'{"\xff": 1}', b""),
    "a list": (b"[]", b""),
    "null": (b"null", b""),
    "NUL padding": (b"{}\0\0", b""),
    "a byte order mark": (b"\xef\xbb\xbf{}", b""),
    "nested beyond reason": (b'{"a":' * 3000 + b"1" + b"}" * 3000, b""),
    "two bytes missing": ({"a": ENTRY}, bytes(6)),
    "two bytes too many": ({"a": ENTRY}, bytes(10)),
    "a hole": ({"a": ENTRY, "b": entry(data_offsets=[16, 24])}, bytes(24)),
    "a hole in front": ({"a": entry(data_offsets=[8, 16])}, bytes(16)),
    "two over one range": ({"a": ENTRY, "b": ENTRY}, EIGHT),
    "an overlap": ({"a": ENTRY, "b": entry(data_offsets=[4, 12])}, bytes(12)),
    "reversed offsets": ({"a": entry(data_offsets=[8, 0])}, EIGHT),
    "one offset": ({"a": entry(data_offsets=[8])}, EIGHT),
    "three offsets": ({"a": entry(data_offsets=[0, 8, 8])}, EIGHT),
    "negative offsets": ({"a": entry(data_offsets=[-8, 0])}, EIGHT),
    "fractional offsets": ({"a": entry(data_offsets=[0.0, 8.0])}, EIGHT),
    "boolean offsets": (b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[false,true]}}', b"0"),
    "text offsets": ({"a": entry(data_offsets=["0", "8"])}, EIGHT),
    "an offset of 400 digits": (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,1' + b"0" * 400 + b"]}}", EIGHT),
    "a shape that does not fit": ({"a": entry(shape=[3])}, EIGHT),
    "a negative shape": ({"a": entry(shape=[-2])}, EIGHT),
    "a null shape": ({"a": entry(shape=None)}, EIGHT),
    "a shape beyond u64": ({"a": entry(shape=[2**63, 2], data_offsets=[0, 0])}, b""),
    "an empty tensor with a side beyond i64": ({"a": entry(shape=[0, 2**64 - 1, 2], data_offsets=[0, 0])}, b""),
    "a tensor of 4 TiB": ({"a": entry(shape=[2**40], data_offsets=[0, 2**42])}, EIGHT),
    "an unknown dtype": ({"a": entry(dtype="F128")}, EIGHT),
    "a lower-case dtype": ({"a": entry(dtype="f32")}, EIGHT),
    "no dtype": ({"a": {"shape": [2], "data_offsets": [0, 8]}}, EIGHT),
    "no offsets": ({"a": {"dtype": "F32", "shape": [2]}}, EIGHT),
    "an entry that is a number": ({"a": 8}, EIGHT),
    "metadata that is not text": ({"__metadata__": {"step": 1}, "a": ENTRY}, EIGHT),
    "metadata that is a list": ({"__metadata__": [], "a": ENTRY}, EIGHT),
    "a NaN": (b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', EIGHT),
    "a lone surrogate": (b'{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', EIGHT),
    "a field twice": (b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', EIGHT),
    "half a byte": ({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}}, b"00"),
    "ten names over one range": ({f"t{index}": ENTRY for index in range(10)}, EIGHT),
}


@pytest.mark.parametrize("case", list(BAD))
def test_what_cannot_be_right_is_refused_in_one_sentence(tmp_path, case):
    header, data = BAD[case]
    path = write(tmp_path / "x.safetensors", header, data)
    with pytest.raises(UnreadableError) as caught:
        safetensors_file.read(path)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 6
    assert len(str(caught.value)) < 500 + len(str(path))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (struct.pack("<Q", 10), "truncated"),
        (struct.pack("<Q", 1000) + b"{}", "truncated"),
        (b"\x3c\0\0\0\0\xff\xff\xff" + b"{}", "claims a header"),
        (b"\x02\0\0", "truncated"),
    ],
)
def test_a_wrong_length_is_refused_before_anything_is_allocated(tmp_path, content, words):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(UnreadableError, match=words):
        safetensors_file.read(tmp_path / "x.safetensors")


def test_every_truncation_of_a_file_is_refused(tmp_path):
    save_file({"a": torch.ones(3), "b": torch.ones(2, dtype=torch.int8)}, tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    cut = tmp_path / "cut.safetensors"
    for size in range(len(whole)):
        cut.write_bytes(whole[:size])
        with pytest.raises(UnreadableError):
            safetensors_file.read(cut)


def test_a_name_that_occurs_twice_is_refused_though_their_parser_takes_it(tmp_path):
    one = json.dumps(ENTRY).encode()
    path = write(tmp_path / "x.safetensors", b'{"a":' + one + b',"a":' + one + b"}", EIGHT)
    with safe_open(path, "numpy") as file:
        assert file.keys() == ["a"]
    with pytest.raises(UnreadableError, match="twice") as caught:
        safetensors_file.read(path)
    assert caught.value.tensor == "a"


@pytest.mark.parametrize("code", ["F4", "F6_E2M3", "F6_E3M2"])
def test_elements_of_less_than_a_byte_are_refused_by_name(tmp_path, code):
    nbytes = 2 if code == "F4" else 3
    header = {"layer.w": {"dtype": code, "shape": [4], "data_offsets": [0, nbytes]}}
    path = write(tmp_path / "x.safetensors", header, bytes(nbytes))
    with pytest.raises(UnsupportedError, match=r"layer\.w") as caught:
        safetensors_file.read(path)
    assert caught.value.tensor == "layer.w"


@pytest.mark.parametrize(
    ("header", "data", "names"),
    [
        (b"  {} \n", b"", []),
        ({"__metadata__": None}, b"", []),
        ({"a": ["F32", [2], [0, 8]]}, EIGHT, ["a"]),
        ({"": ENTRY}, EIGHT, [""]),
        ({"../../etc/passwd": ENTRY, "\0": entry(data_offsets=[8, 16])}, bytes(16), ["../../etc/passwd", "\0"]),
        ({"a": {**ENTRY, "note": "unknown field"}}, EIGHT, ["a"]),
        ({"a": entry(shape=[2] + [1] * 70)}, EIGHT, ["a"]),
        ({"a": entry(shape=[0, 3], data_offsets=[0, 0])}, b"", ["a"]),
        ({"a": entry(shape=[], data_offsets=[0, 4])}, bytes(4), ["a"]),
    ],
)
def test_what_their_parser_takes_is_taken(tmp_path, header, data, names):
    path = write(tmp_path / "x.safetensors", header, data)
    assert safetensors_file.recognise(path, path.read_bytes()[:4096], Snapshot())
    assert list(safetensors_file.read(path).weights) == names


def test_their_parser_and_ours_agree_about_mutilated_headers(tmp_path):
    """Each byte of a sound header, changed to others: whatever they refuse, so do we."""
    save_file({"a": torch.ones(3), "bc": torch.ones(2, 2, dtype=torch.int16)}, tmp_path / "whole.safetensors")
    whole = bytearray((tmp_path / "whole.safetensors").read_bytes())
    path = tmp_path / "x.safetensors"
    for position in range(8, len(whole) - 20):
        for other in b'"0-{]':
            broken = bytes(whole[:position]) + bytes([other]) + bytes(whole[position + 1 :])
            path.write_bytes(broken)
            try:
                with safe_open(path, "numpy"):
                    theirs = True
            except SafetensorError:
                theirs = False
            try:
                safetensors_file.read(path)
                ours = True
            except UnreadableError:
                ours = False
            assert ours == theirs, (position, chr(other))


def test_recognised_by_content(tmp_path):
    assert not safetensors_file.recognise(tmp_path / "x", b"PK\x03\x04" + bytes(100), Snapshot())
    assert not safetensors_file.recognise(tmp_path / "x", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", Snapshot())
    assert not safetensors_file.recognise(tmp_path, b"", Snapshot())
    assert safetensors_file.recognise(tmp_path / "x", struct.pack("<Q", 300) + b'{"a":', Snapshot())
    assert safetensors_file.recognise(tmp_path / "x", struct.pack("<Q", 300) + b" \n\t{", Snapshot())


def test_every_dtype_is_read_as_torch_reads_it(tmp_path):
    tensors = {}
    for name in sorted(DTYPES.keys() - {"complex128"}):
        tensors[name] = torch.arange(6).to(getattr(torch, name)).reshape(2, 3)
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    checkpoint = safetensors_file.read(path)
    assert checkpoint.weights.keys() == tensors.keys()
    for name, spec in checkpoint.weights.items():
        assert spec.dtype.name == name
        assert spec.shape == (2, 3)
        values = read_values(spec)
        assert values.dtype.name == name
        assert values.tobytes() == bytes(tensors[name].contiguous().view(torch.uint8).numpy().tobytes())


def test_what_is_laid_out_is_byte_for_byte_what_safetensors_writes(tmp_path):
    """Apart from the metadata: order, padding and header are their writer's own."""
    tensors = {}
    for index, name in enumerate(sorted(DTYPES.keys() - {"complex128"})):
        tensors[f"{'zyx'[index % 3]}.{name}"] = torch.arange(5).to(getattr(torch, name))
    save_file(tensors, tmp_path / "x.safetensors", {"format": "pt"})
    execute(build_plan([tmp_path / "x.safetensors"] * 2, tmp_path / "o.safetensors"))
    assert (tmp_path / "o.safetensors").read_bytes() == (tmp_path / "x.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("metadata", "step"),
    [({"step": "1200"}, 1200), ({"global_step": "7"}, 7), ({"step": "many"}, None), ({"step": "-1"}, None), ({}, None)],
)
def test_the_step_is_read_where_the_metadata_states_it(tmp_path, metadata, step):
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors", metadata)
    checkpoint = safetensors_file.read(tmp_path / "x.safetensors")
    assert checkpoint.step == step
    assert checkpoint.provenance is None


def test_metadata_of_the_template_stays_and_provenance_comes_back(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors", {"format": "pt", "author": "me", "ckpttool": "{bad"})
    assert safetensors_file.read(tmp_path / "x.safetensors").provenance is None
    provenance = {"members": [{"name": "é", "step": 3}], "version": "1"}
    plan = build_plan([tmp_path / "x.safetensors"], tmp_path / "o.safetensors", provenance=provenance)
    execute(plan)
    written = safetensors_file.read(tmp_path / "o.safetensors")
    assert written.provenance == provenance
    assert written.metadata["author"] == "me"
    assert written.metadata["format"] == "pt"
    assert written.values == {"author": "me"}
    with safe_open(tmp_path / "o.safetensors", "pt") as file:
        assert list(file.metadata()) == list(written.metadata) or set(file.metadata()) == set(written.metadata)
    plain = build_plan([tmp_path / "x.safetensors"], tmp_path / "p.safetensors")
    assert "ckpttool" not in json.loads(plain.files[0].literals[0][1][8:])["__metadata__"]


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(7, 4)
        self.head = torch.nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight


def test_ties_that_save_model_notes_are_read_and_written_again(tmp_path):
    models = [Tied(), Tied()]
    paths = [tmp_path / f"{index}.safetensors" for index in range(2)]
    for model, path in zip(models, paths, strict=True):
        save_model(model, str(path))
    checkpoint = safetensors_file.read(paths[0])
    assert checkpoint.weights["embed.weight"] == checkpoint.weights["head.weight"]
    execute(build_plan(paths, tmp_path / "o.safetensors"))
    fresh = Tied()
    assert load_model(fresh, tmp_path / "o.safetensors") == (set(), [])
    expected = ((models[0].embed.weight.double() + models[1].embed.weight.double()) / 2).float()
    assert torch.equal(fresh.head.weight, expected)
    assert load_file(tmp_path / "o.safetensors").keys() == load_file(paths[0]).keys()
    again = safetensors_file.read(tmp_path / "o.safetensors")
    assert again.weights["embed.weight"] == again.weights["head.weight"]


def test_a_metadata_key_that_happens_to_name_a_tensor_is_no_tie(tmp_path):
    save_file({"pt": torch.ones(1)}, tmp_path / "x.safetensors", {"format": "pt"})
    assert list(safetensors_file.read(tmp_path / "x.safetensors").weights) == ["pt"]


def artifact(**tensors):
    return Artifact({("", name): tensor for name, tensor in tensors.items()})


def test_what_the_format_cannot_hold_is_refused_by_name():
    with pytest.raises(UnsupportedError, match="complex128") as caught:
        safetensors_file.lay_out(artifact(x=OutputTensor(DTYPES["complex128"], (2,))))
    assert caught.value.tensor == "x"
    with pytest.raises(UnsupportedError, match="__metadata__"):
        safetensors_file.lay_out(artifact(__metadata__=OutputTensor(DTYPES["float32"], (2,))))
    with pytest.raises(UnsupportedError, match="Unicode"):
        safetensors_file.lay_out(artifact(**{"\ud800": OutputTensor(DTYPES["float32"], (2,))}))
    with pytest.raises(ValueError, match="strides"):
        safetensors_file.lay_out(artifact(x=OutputTensor(DTYPES["float32"], (2, 3), (1, 2))))


def test_copies_in_other_sections_are_left_out():
    tensor = OutputTensor(DTYPES["float32"], (2,))
    (file,) = safetensors_file.lay_out(Artifact({("", "a"): tensor, ("ema", "a"): tensor}))
    assert [slot.tensor for slot in file.slots] == [("", "a")]


def test_a_section_is_refused(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    with pytest.raises(UnsupportedError, match="section"):
        safetensors_file.read(tmp_path / "x.safetensors", section="model")


def test_an_output_without_tensors_is_a_sound_file(tmp_path):
    (file,) = safetensors_file.lay_out(Artifact({}))
    (tmp_path / "x.safetensors").write_bytes(file.literals[0][1])
    assert load_file(tmp_path / "x.safetensors") == {}


def test_the_header_is_padded_so_that_tensors_are_aligned():
    for length in range(1, 20):
        (file,) = safetensors_file.lay_out(artifact(**{"x" * length: OutputTensor(DTYPES["float64"], (2,))}))
        assert file.slots[0].offset % 8 == 0
        assert np.all([slot.offset + slot.nbytes <= file.nbytes for slot in file.slots])


def raw_file(path: Path, metadata: str, rest: str, data: bytes) -> Path:
    """A file with a header of this text."""
    text = f'{{"__metadata__":{metadata}{rest}'.encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


REST = ',"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'


def test_headers_that_differ_in_their_metadata_alone_are_judged_once(tmp_path, monkeypatch):
    judged = []
    real = safetensors_file._parse
    monkeypatch.setattr(safetensors_file, "_parse", lambda path, *rest: judged.append(path) or real(path, *rest))
    snapshot = Snapshot()
    paths = [raw_file(tmp_path / f"{step}", f'{{"step":"{step}"}}', REST, bytes(8)) for step in (7, 800, 90_000)]
    for path, step in zip(paths, (7, 800, 90_000), strict=True):
        shared, alone = safetensors_file.read(path, snapshot=snapshot), safetensors_file.read(path)
        assert shared == alone
        assert shared.step == step
    assert judged == [paths[0], paths[0], paths[1], paths[2]]


@pytest.mark.parametrize(
    ("metadata", "data"),
    [
        ('{"step":7}', bytes(8)),  # not a string
        ('{"step":"\\ud800"}', bytes(8)),  # not a character
        ('{"step":"7"}', bytes(9)),  # a byte too many
        ('{"step":"7"}', bytes(7)),
    ],
)
def test_what_safetensors_refuses_is_refused_after_a_file_with_the_same_tensors(tmp_path, metadata, data):
    snapshot = Snapshot()
    safetensors_file.read(raw_file(tmp_path / "sound", '{"step":"1"}', REST, bytes(8)), snapshot=snapshot)
    path = raw_file(tmp_path / "unsound", metadata, REST, data)
    with pytest.raises(SafetensorError), safe_open(path, framework="numpy"):
        pass
    with pytest.raises(UnreadableError):
        safetensors_file.read(path, snapshot=snapshot)
