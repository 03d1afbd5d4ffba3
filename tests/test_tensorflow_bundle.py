"""TensorFlow checkpoints: read as TensorFlow reads them, written so that every entry is right, damage refused.

The files in tests/data/tensorflow were written by TensorFlow and OpenNMT-tf (make.py there). The .npz next to each has
what TensorFlow itself reads from it.
"""

from __future__ import annotations

import contextlib
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from filler import artifact_like, fill, load, loaded, mean
from hypothesis import given, settings
from hypothesis import strategies as st

import ckpttool
from ckpttool.checksums import crc32c
from ckpttool.engine.run import execute
from ckpttool.errors import NotFoundError, OutputExistsError, UnreadableError, UnsupportedError, UsageError
from ckpttool.formats import open_checkpoint
from ckpttool.formats.tensorflow import bundle as bundles
from ckpttool.formats.tensorflow import entries as bundle_entries
from ckpttool.formats.tensorflow import leveldb as leveldb_table
from ckpttool.formats.tensorflow import protobuf as protobuf_wire
from ckpttool.formats.tensorflow.entries import Entry
from ckpttool.formats.tensorflow.object_graph import OBJECT_GRAPH, prune_object_graph
from ckpttool.planning.planner import make_plan
from ckpttool.selection.discovery import discover, from_paths
from ckpttool.tensors import DTYPES, Artifact, OutputTensor

DATA = Path(__file__).parent / "data/tensorflow"
PREFIXES = {
    "keras": DATA / "keras/ckpt-3",
    "dtypes": DATA / "dtypes/ckpt-1",
    "shards": DATA / "shards/ckpt-5",
    "tf1": DATA / "tf1/model.ckpt-7",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A model directory of OpenNMT-tf."""
    directory = tmp_path_factory.mktemp("run")
    with tarfile.open(DATA / "opennmt-tf.tar.xz") as tar:
        for member in tar.getmembers():
            (directory / member.name).parent.mkdir(exist_ok=True)
            (directory / member.name).write_bytes(tar.extractfile(member).read())
    return directory


def bits(array):
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).tolist()


def write(directory, arrays, *, prefix="ckpt-1", big_endian=False, dtypes=None, **changes):
    """A bundle made by hand, entry by entry; `changes` replaces fields of the entry "w"."""
    data, entries = b"", {}
    for key, array in arrays.items():
        number = (dtypes or {}).get(key, bundle_entries.TF_NUMBERS[array.dtype.name])
        raw = (array.byteswap() if big_endian else array).tobytes()
        entries[key] = Entry(number, array.shape, 0, len(data), len(raw), crc32c.mask(crc32c.extend(0, raw)))
        data += raw
    if "w" in entries:
        entries["w"] = replace(entries["w"], **changes)
    index = bundle_entries.index_bytes(entries)
    if big_endian:
        table = list(leveldb_table.read_table(index))
        table[0] = (b"", table[0][1] + protobuf_wire.write_varint(2, 1))
        index = leveldb_table.write_table(table)
    directory.mkdir(exist_ok=True)
    (directory / f"{prefix}.index").write_bytes(index)
    (directory / f"{prefix}.data-00000-of-00001").write_bytes(data)
    return directory / prefix


def verify(checkpoint):
    """Compare every weight and copy with the checksum that the index has for it."""
    bundle = checkpoint.container
    for key in bundle.keys.values():
        entry = bundle.entries[key]
        data = bundle_entries.read_bytes(bundle.data_file(entry), key, entry)
        assert crc32c.mask(crc32c.extend(0, data)) == entry.crc, key


# --- Reading ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PREFIXES)
def test_every_number_is_the_one_that_tensorflow_reads(name):
    checkpoint = open_checkpoint(PREFIXES[name])
    bundle = checkpoint.container
    with np.load(DATA / f"{name}.npz") as expected:
        read = {key: bundles._spec(checkpoint.path, bundle, key) for key, e in bundle.entries.items() if e.number != 7}
        assert {key.replace("/", "|") for key in read} == set(expected)
        for key, spec in read.items():
            array = load(spec)
            assert array.shape == expected[key.replace("/", "|")].shape
            assert bits(array) == bits(expected[key.replace("/", "|")])
            assert array.dtype == expected[key.replace("/", "|")].dtype or spec.dtype.name == "bfloat16"


@pytest.mark.parametrize("name", PREFIXES)
def test_the_checksums_of_sound_files_match(name):
    verify(open_checkpoint(PREFIXES[name]))


def test_opennmt_tf_run_is_understood(run):
    checkpoint = open_checkpoint(run / "ckpt-6")
    assert len(checkpoint.weights) == 50
    assert all(name.startswith("model/") and "ATTRIBUTES" not in name for name in checkpoint.weights)
    assert checkpoint.weights["model/decoder/output_layer/kernel"].shape == (4, 7)
    assert checkpoint.step == 6
    assert checkpoint.values["optimizer.iter"] == 6
    assert checkpoint.values["save_counter"] == 4
    assert checkpoint.state == ("optimizer",)
    assert [file.name for file in checkpoint.files] == ["ckpt-6.index", "ckpt-6.data-00000-of-00001"]
    assert checkpoint.provenance is None


def test_optimizer_without_slot_markers_is_no_weight():
    checkpoint = open_checkpoint(PREFIXES["keras"])
    layers = "model/layer_with_weights-"
    assert set(checkpoint.weights) == {
        *(f"{layers}0/{name}" for name in ("kernel", "bias")),
        *(f"{layers}1/{name}" for name in ("gamma", "beta", "moving_mean", "moving_variance")),
        "frozen",
    }
    assert checkpoint.step == 3
    assert checkpoint.state == ("optimizer",)


def test_tensorflow_1_slots_are_state_and_moving_averages_are_copies():
    checkpoint = open_checkpoint(PREFIXES["tf1"])
    assert set(checkpoint.weights) == {"scope/w"}
    assert set(checkpoint.copies["ExponentialMovingAverage"]) == {"scope/w"}
    assert "global_step" in checkpoint.values
    assert checkpoint.step == 7
    assert "Adam" in checkpoint.state


def test_an_optimizer_is_known_by_what_it_holds_whatever_it_is_called(tmp_path):
    one, count = np.ones(2, np.float32), np.array(9)
    arrays = {"net/w": one, "trainer/iterations": count, "trainer/learning_rate": one[0], "trainer/m/w": one}
    checkpoint = open_checkpoint(write(tmp_path, arrays))
    assert set(checkpoint.weights) == {"net/w"}
    assert (checkpoint.step, checkpoint.state) == (9, ("trainer",))


@pytest.mark.parametrize(
    ("prefix", "arrays", "step"),
    [
        ("ckpt-12", {"optimizer/iter": np.array(340), "save_counter": np.array(12)}, 340),
        ("ckpt-12", {"global_step": np.array(77)}, 77),
        ("model.ckpt-12", {}, 12),
        ("best", {"save_counter": np.array(4)}, 4),
        ("best", {}, None),
    ],
)
def test_step_is_the_optimizers_counter_then_the_global_step_then_the_name(tmp_path, prefix, arrays, step):
    arrays = {"w": np.ones(3, np.float32), **arrays}
    assert open_checkpoint(write(tmp_path, arrays, prefix=prefix)).step == step


def test_a_checkpoint_is_named_by_prefix_or_index_or_by_its_directory_when_alone(tmp_path, run):
    prefix = write(tmp_path / "avg", {"w": np.ones(3, np.float32)})
    for path in (prefix, Path(f"{prefix}.index"), tmp_path / "avg", str(prefix)):
        checkpoint = open_checkpoint(path)
        assert checkpoint.path == Path(path)
        assert set(checkpoint.weights) == {"w"}
    with pytest.raises(UnsupportedError):
        open_checkpoint(run)  # three of them
    with pytest.raises(NotFoundError):
        open_checkpoint(tmp_path / "ckpt-2")


def test_a_section_narrows_the_weights(run):
    checkpoint = bundles.read(run / "ckpt-6", section="model/encoder")
    assert checkpoint.weights
    assert all(name.startswith("model/encoder/") for name in checkpoint.weights)
    with pytest.raises(UsageError, match="generator") as caught:
        bundles.read(run / "ckpt-6", section="generator")
    assert "model" in caught.value.hint


def test_two_keys_that_would_share_a_name_stay_apart(tmp_path):
    long = "w/.ATTRIBUTES/VARIABLE_VALUE"
    arrays = {"w": np.ones(1, np.float32), long: np.zeros(1, np.float32), "x/.ATTRIBUTES/VARIABLE_VALUE": np.ones(1)}
    assert set(open_checkpoint(write(tmp_path, arrays)).weights) == {"w", long, "x"}


@pytest.mark.parametrize("dtype", sorted(bundle_entries.TF_NUMBERS))
def test_big_endian_files_hold_the_same_numbers(tmp_path, dtype):
    array = np.arange(6).reshape(2, 3).astype(getattr(ml_dtypes, dtype, dtype))
    checkpoint = open_checkpoint(write(tmp_path, {"w": array, "step": np.array(258)}, big_endian=True))
    spec = checkpoint.weights["w"]
    assert spec.big_endian
    raw = np.frombuffer(spec.storage.path.read_bytes()[: spec.nbytes], array.dtype).byteswap()
    assert bits(raw) == bits(array)
    assert checkpoint.step == 258


# --- Writing ---------------------------------------------------------------------------------------------------


def averaged(run, tmp_path, **changes):
    members = [open_checkpoint(run / f"ckpt-{step}") for step in (2, 4, 6)]
    artifact = artifact_like(members[-1], **changes)
    files = bundles.lay_out(artifact)
    fill(files, tmp_path / "out", artifact, mean(members))
    return members, files


def test_the_average_of_an_opennmt_tf_run_is_opennmt_tfs_own(run, tmp_path):
    """It rounds value / 3 and each addition to float32, six times; ckpttool rounds once. Its way gives its bits."""
    members, _ = averaged(run, tmp_path)
    ours, theirs = loaded(open_checkpoint(tmp_path / "out")), loaded(open_checkpoint(run / "avg"))
    assert ours.keys() == theirs.keys()
    arrays = [loaded(member) for member in members]
    for tensor, expected in theirs.items():
        emulated = np.zeros_like(expected)
        for member in arrays:
            emulated += member[tensor] / np.float32(3)
        assert bits(emulated) == bits(expected)
        exact = sum(member[tensor].astype(np.longdouble) for member in arrays) / 3
        assert np.all(np.abs(ours[tensor] - exact) <= np.spacing(np.abs(ours[tensor])) * 0.5001)


def test_output_has_opennmt_tfs_files_and_keeps_all_but_the_slots(run, tmp_path):
    _, files = averaged(run, tmp_path, provenance={"members": ["ckpt-2"]})
    assert {file.name for file in files} == {"ckpt-6.index", "ckpt-6.data-00000-of-00001", "checkpoint"}
    text = (tmp_path / "out/checkpoint").read_text()
    assert text == 'model_checkpoint_path: "ckpt-6"\nall_model_checkpoint_paths: "ckpt-6"\n'
    out, newest = open_checkpoint(tmp_path / "out"), open_checkpoint(run / "ckpt-6")
    verify(out)
    assert list(out.weights) == list(newest.weights)
    assert (out.step, out.values, out.state) == (newest.step, newest.values, ())
    assert out.provenance == {"members": ["ckpt-2"]}
    left_out = newest.container.entries.keys() - out.container.entries.keys()
    assert len(left_out) == 100
    assert all(".OPTIMIZER_SLOT" in key for key in left_out)


def test_the_object_graph_names_what_the_file_holds_and_nothing_else(run, tmp_path):
    averaged(run, tmp_path)
    bundle = open_checkpoint(tmp_path / "out").container
    entry = bundle.entries[OBJECT_GRAPH]
    graph = bundle_entries.read_string(bundle.data_file(entry), OBJECT_GRAPH, entry)
    named = set()
    for _, node in protobuf_wire.fields(graph):
        for number, field in protobuf_wire.fields(node):
            assert number != 3  # all slot variables are gone
            if number == 2:
                named |= {value.decode() for inner, value in protobuf_wire.fields(field) if inner == 3}
    assert named == bundle.entries.keys() - {OBJECT_GRAPH}
    assert prune_object_graph(graph, named) == graph


def test_training_state_is_kept_when_asked_for(run, tmp_path):
    averaged(run, tmp_path, keep_state=True)
    out, newest = open_checkpoint(tmp_path / "out").container, open_checkpoint(run / "ckpt-6").container
    assert out.entries.keys() == newest.entries.keys()
    for key, entry in newest.entries.items():
        if key not in newest.keys.values():
            other = out.entries[key]
            theirs = bundle_entries.read_bytes(newest.data_file(entry), key, entry)
            assert bundle_entries.read_bytes(out.data_file(other), key, other) == theirs
            assert other.crc == entry.crc


@pytest.mark.parametrize("name", PREFIXES)
def test_a_bundle_written_again_holds_the_same(name, tmp_path):
    checkpoint = open_checkpoint(PREFIXES[name])
    artifact = artifact_like(checkpoint, keep_state=True)
    fill(bundles.lay_out(artifact), tmp_path / "out", artifact, loaded(checkpoint))
    again = open_checkpoint(tmp_path / "out" / PREFIXES[name].name)
    verify(again)
    assert (again.step, again.values, again.state) == (checkpoint.step, checkpoint.values, checkpoint.state)
    assert again.container.entries.keys() == checkpoint.container.entries.keys()
    for key, entry in checkpoint.container.entries.items():
        other = again.container.entries[key]
        assert (other.number, other.shape, other.nbytes, other.crc) == (
            entry.number,
            entry.shape,
            entry.nbytes,
            entry.crc,
        )
    assert {t: bits(a) for t, a in loaded(again).items()} == {t: bits(a) for t, a in loaded(checkpoint).items()}


def test_an_average_of_averages_states_its_own_members_only(run, tmp_path):
    averaged(run, tmp_path, provenance={"members": ["first"]})
    first = open_checkpoint(tmp_path / "out")
    artifact = artifact_like(first, provenance={"members": ["second"]})
    fill(bundles.lay_out(artifact), tmp_path / "again", artifact, loaded(first))
    assert open_checkpoint(tmp_path / "again").provenance == {"members": ["second"]}


def test_tensors_of_other_formats_become_variables_and_ties_share_their_bytes(tmp_path):
    shapes = {"a.weight": (2, 3), "b.weight": (2, 3), "empty": (0, 4), "scalar": ()}
    tensors = {("", name): OutputTensor(DTYPES["bfloat16"], shape) for name, shape in shapes.items()}
    artifact = Artifact(tensors, ties={("", "b.weight"): ("", "a.weight")}, stem="model")
    arrays = {t: np.full(o.shape, 1.5, ml_dtypes.bfloat16) for t, o in tensors.items()}
    files = bundles.lay_out(artifact)
    assert sum(file.nbytes for file in files if ".data-" in file.name) == 14
    fill(files, tmp_path / "out", artifact, arrays)
    out = open_checkpoint(tmp_path / "out/model")
    verify(out)
    assert out.weights["a.weight"] == out.weights["b.weight"]
    assert {t: (a.shape, bits(a)) for t, a in loaded(out).items()} == {t: (a.shape, bits(a)) for t, a in arrays.items()}


def test_what_a_bundle_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    artifact = Artifact({("", "scale"): OutputTensor(DTYPES["float8_e8m0fnu"], (2,))})
    with pytest.raises(UnsupportedError, match="scale"):
        bundles.lay_out(artifact)
    big = open_checkpoint(write(tmp_path, {"w": np.ones(2, np.float32)}, big_endian=True))
    with pytest.raises(UnsupportedError, match="big-endian"):
        bundles.lay_out(artifact_like(big))


def test_the_average_of_a_run_is_a_model_directory_of_its_own(tmp_path):
    """As OpenNMT-tf writes it: the bundle and its ``checkpoint`` file are in avg/ itself."""
    for step in (1, 2):
        write(tmp_path, {"w": np.full(2, step, np.float32)}, prefix=f"ckpt-{step}")
    plan = make_plan(discover(tmp_path).last(2), f"{tmp_path / 'avg'}/")
    execute(plan)
    names = {"checkpoint", "ckpt-2.index", "ckpt-2.data-00000-of-00001"}
    assert {path.name for path in (tmp_path / "avg").iterdir()} == names
    # A separator at its end does not change the place, and is not suggested.
    with pytest.raises(OutputExistsError) as caught:
        execute(make_plan(discover(tmp_path).last(2), tmp_path / "avg"))
    assert caught.value.hint == "force=True replaces the earlier output. Choose another output."


@pytest.mark.parametrize("jobs", [1, 3])
def test_the_engine_writes_checksums_that_match_however_it_cuts_the_work(tmp_path, jobs):
    rng = np.random.default_rng(1)
    shapes = {"net/small": (3,), "net/large": (700, 1001), "net/empty": (0, 2), "net/half": (300, 1000)}
    for step in (1, 2, 3):
        arrays = {n: rng.standard_normal(s).astype("float16" if "half" in n else "float32") for n, s in shapes.items()}
        write(tmp_path, {**arrays, "save_counter": np.array(step)}, prefix=f"ckpt-{step}")
    found = from_paths([tmp_path / f"ckpt-{step}.index" for step in (1, 2, 3)])
    execute(make_plan(found, tmp_path / "avg"), jobs=jobs)
    out = open_checkpoint(tmp_path / "avg")
    verify(out)
    assert out.path.is_dir()
    assert out.values == {"save_counter": 3}
    assert [member["name"] for member in out.provenance["members"]] == ["ckpt-1.index", "ckpt-2.index", "ckpt-3.index"]
    expected = mean([open_checkpoint(tmp_path / f"ckpt-{step}") for step in (1, 2, 3)])
    assert {t: bits(a) for t, a in loaded(out).items()} == {t: bits(a) for t, a in expected.items()}


# --- Damage ----------------------------------------------------------------------------------------------------


def copied(name, tmp_path):
    shutil.copytree(PREFIXES[name].parent, tmp_path / name)
    return tmp_path / name / PREFIXES[name].name


def test_a_flipped_bit_in_the_step_or_the_object_graph_is_found(tmp_path):
    prefix = copied("keras", tmp_path)
    checkpoint = open_checkpoint(prefix)
    path = checkpoint.files[1]
    sound = path.read_bytes()
    entries = checkpoint.container.entries
    step, graph = entries["optimizer/_iterations/.ATTRIBUTES/VARIABLE_VALUE"], entries[OBJECT_GRAPH]
    path.write_bytes(sound[: step.offset] + b"\x07" + sound[step.offset + 1 :])
    with pytest.raises(UnreadableError, match="_iterations"):
        open_checkpoint(prefix)
    path.write_bytes(sound[: graph.offset + 50] + b"\xff\xff" + sound[graph.offset + 52 :])
    with pytest.raises(UnreadableError, match="OBJECT_GRAPH"):
        bundles.lay_out(artifact_like(open_checkpoint(prefix)))


def test_truncated_and_missing_files_are_refused(tmp_path):
    prefix = copied("shards", tmp_path)
    second = prefix.with_name("ckpt-5.data-00001-of-00002")
    second.write_bytes(second.read_bytes()[:-1])
    with pytest.raises(UnreadableError, match="truncated") as caught:
        open_checkpoint(prefix)
    assert caught.value.path == second
    second.unlink()
    with pytest.raises(UnreadableError, match=r"00001-of-00002.*incomplete"):
        open_checkpoint(prefix)
    index = prefix.with_name("ckpt-5.index")
    index.write_bytes(index.read_bytes()[:-20])
    with pytest.raises(UnreadableError):
        open_checkpoint(prefix)


def test_partitioned_variables_are_refused_by_name():
    with pytest.raises(UnsupportedError, match="w is partitioned"):
        open_checkpoint(DATA / "partitioned/ckpt-1")


def test_types_that_ckpttool_does_not_know_are_refused_by_name(tmp_path):
    prefix = write(tmp_path, {"w": np.ones(2, np.uint8)}, dtypes={"w": 29})
    with pytest.raises(UnsupportedError, match="w has TensorFlow's element type 29"):
        open_checkpoint(prefix)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"offset": 1}, "truncated"),
        ({"offset": -1}, "byte -1"),
        ({"offset": 1 << 62}, "truncated"),
        ({"nbytes": 8}, "has 8 bytes"),
        ({"shape": (1 << 62, 1 << 62)}, "bytes"),
        ({"shape": (-3,)}, "shape"),
        ({"shape": (1,) * 300}, "shape"),
        ({"shard": 1}, "data file 1 of 1"),
        ({"shard": -1}, "data file -1"),
    ],
)
def test_entries_that_cannot_be_are_refused(tmp_path, changes, says):
    with pytest.raises(UnreadableError, match=says):
        open_checkpoint(write(tmp_path, {"w": np.ones(3, np.float32)}, **changes))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_an_index_with_right_checksums_and_any_content_opens_or_is_refused(tmp_path_factory, data):
    """A header and entries of arbitrary bytes: no exception but our own, whatever they say."""
    directory = tmp_path_factory.getbasetemp() / "fuzz"
    prefix = write(directory, {"w": np.ones(3, np.float32), "x": np.ones(2)})
    path = Path(f"{prefix}.index")
    table = list(leveldb_table.read_table(path.read_bytes()))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(table) - 1))
        key, value = bytearray(table[at][0]), bytearray(table[at][1])
        target = data.draw(st.sampled_from([key, value]))
        if target:
            target[data.draw(st.integers(0, len(target) - 1))] = data.draw(st.integers(0, 255))
        target.extend(data.draw(st.binary(max_size=3)))
        table[at] = (bytes(key), bytes(value))
    path.write_bytes(leveldb_table.write_table(sorted(table)))
    with contextlib.suppress(UnreadableError):
        loaded(bundles.read(prefix))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_damage_to_an_index_opens_or_is_refused(tmp_path_factory, data):
    directory = tmp_path_factory.getbasetemp() / "fuzz"
    prefix = write(directory, {"w": np.ones(3, np.float32)})
    path = Path(f"{prefix}.index")
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content)))
    content[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    path.write_bytes(content)
    with contextlib.suppress(UnreadableError):
        bundles.read(prefix)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60))
def test_any_object_graph_is_pruned_or_refused(graph):
    with contextlib.suppress(ValueError):
        prune_object_graph(graph, set())


def test_weights_that_a_keras_3_optimizer_holds_are_weights(tmp_path):
    """TensorFlow saves a shared variable under the first of its names, which is the optimizer's."""
    value = ".ATTRIBUTES/VARIABLE_VALUE"
    arrays = {
        f"model/_functional/_operations/2/moving_mean/{value}": np.ones(2, np.float32),
        f"optimizer/_iterations/{value}": np.array(7),
        f"optimizer/_learning_rate/{value}": np.array(0.1, np.float32),
        f"optimizer/_trainable_variables/0/{value}": np.ones((3, 2), np.float32),
        f"optimizer/_variables/2/{value}": np.ones((3, 2), np.float32),
    }
    checkpoint = bundles.read(write(tmp_path / "run", arrays))
    assert set(checkpoint.weights) == {
        "model/_functional/_operations/2/moving_mean",
        "optimizer/_trainable_variables/0",
    }
    assert checkpoint.step == 7
    assert checkpoint.state == ("optimizer",)


def test_prefixes_name_the_members_of_a_list_and_one_checkpoint(tmp_path):
    for step in (1, 2):
        write(tmp_path, {"w": np.full(3, step, np.float32)}, prefix=f"ckpt-{step}")
    prefixes = [tmp_path / f"ckpt-{step}" for step in (1, 2)]
    plan = ckpttool.average(prefixes, tmp_path / "avg.npz", dry_run=True)
    assert [member.step for member in plan.members] == [1, 2]
    plan = ckpttool.average(prefixes[0], tmp_path / "one.npz", last=1, dry_run=True)
    assert [member.step for member in plan.members] == [1]
    assert [entry.step for entry in from_paths(prefixes).entries] == [1, 2]
    with pytest.raises(NotFoundError, match="no moving average in it"):
        ckpttool.ema_apply(prefixes[0], tmp_path / "ema.npz")
    with pytest.raises(UsageError, match="given twice"):
        from_paths([prefixes[0], tmp_path / "ckpt-1.index"])
    with pytest.raises(NotFoundError, match="no such file"):
        from_paths([*prefixes, tmp_path / "ckpt-3"])
