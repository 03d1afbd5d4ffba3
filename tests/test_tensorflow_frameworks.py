"""TensorFlow and OpenNMT-tf take what ckpttool writes, and OpenNMT-tf's own average is ours.

python -m pip install tensorflow-cpu==2.13.1 tensorflow-addons==0.21.0 OpenNMT-tf
python -m pytest tests/test_tensorflow_frameworks.py
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from filler import artifact_like, fill, loaded, mean

from ckpttool.engine import execute
from ckpttool.errors import UnreadableError
from ckpttool.formats.tensorflow import bundle as bundles
from ckpttool.planning.planner import make_plan
from ckpttool.selection.discovery import from_paths

pytestmark = [
    pytest.mark.frameworks,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="TensorFlow is not installed"),
]

DATA = Path(__file__).parent / "data/tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(scope="module")
def tf():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorflow as tf

        return tf


@pytest.fixture(scope="module")
def make(tf):
    """The module that made the files in tests/data."""
    spec = importlib.util.spec_from_file_location("make", DATA / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def trained(make, tmp_path_factory):
    """A directory with a run of OpenNMT-tf in it."""
    pytest.importorskip("opennmt")
    directory = tmp_path_factory.mktemp("opennmt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make.train_opennmt(directory, steps=16, every=2)
    return directory


def average(prefixes, output, **changes):
    members = [bundles.read(prefix) for prefix in prefixes]
    artifact = artifact_like(members[-1], **changes)
    fill(bundles.lay_out(artifact), output, artifact, mean(members))
    return bundles.read(output)


def fresh_model(make, directory):
    """OpenNMT-tf's model, with variables."""
    _, model = make.opennmt_runner(directory)
    model.initialize({name: str(directory / "vocab.txt") for name in ("source_vocabulary", "target_vocabulary")})
    model.create_variables()
    return model


@pytest.mark.parametrize("count", [2, 3, 8])
def test_average_is_opennmt_tfs_own(make, tf, trained, tmp_path, count):
    """To the bit for two members, to the last bit explained for more.

    OpenNMT-tf rounds to float32 twice for each member: value / n, and the addition. Doing so step by step gives its
    bits. ckpttool rounds once: half a unit in the last place from the true mean at most. Half of two members is exact.
    """
    from opennmt.utils import checkpoint as opennmt_checkpoint

    prefixes = [trained / f"run/ckpt-{step}" for step in range(18 - 2 * count, 17, 2)]
    model = fresh_model(make, trained)
    opennmt_checkpoint.average_checkpoints_into_layer([str(p) for p in prefixes], model, "model")
    theirs_prefix = tf.train.Checkpoint(model=model).write(str(tmp_path / "theirs/ckpt-1"))
    theirs = loaded(bundles.read(Path(theirs_prefix)))
    members = [loaded(bundles.read(prefix)) for prefix in prefixes]
    ours = loaded(average(prefixes, tmp_path / "ours"))
    assert len(theirs) == 50
    different, largest = 0, 0.0
    for tensor, values in theirs.items():
        emulated = np.zeros_like(values)
        for member in members:
            emulated += member[tensor] / np.float32(count)
        assert np.array_equal(emulated, values)
        exact = sum(member[tensor].astype(np.longdouble) for member in members) / count
        assert np.all(np.abs(ours[tensor] - exact) <= np.spacing(np.abs(ours[tensor])) * 0.5001)
        off = np.abs(ours[tensor] - values)
        different += np.count_nonzero(off)
        largest = max(largest, np.max(off / np.spacing(np.abs(ours[tensor]))))
    total = sum(values.size for values in theirs.values())
    print(f"{count} members: {different} of {total} elements differ, by {largest:g} units in the last place at most")
    if count == 2:
        assert different == 0


def test_opennmt_tf_translates_with_our_average(make, trained, tmp_path):
    """Its own runner loads the directory, as with `--checkpoint_path` and `auto_config`."""
    average([trained / "run/ckpt-14", trained / "run/ckpt-16"], tmp_path / "avg", provenance={"by": "ckpttool"})
    for path in (tmp_path / "avg", tmp_path / "avg/ckpt-16"):
        runner, _ = make.opennmt_runner(trained)
        runner.infer(str(trained / "src.txt"), predictions_file=str(tmp_path / "out.txt"), checkpoint_path=str(path))
        assert len((tmp_path / "out.txt").read_text().splitlines()) == 24


def test_opennmt_tf_averages_and_trains_on_from_our_average(make, tf, trained, tmp_path):
    """The step continues, the optimizer starts afresh, and nothing that is looked for is missing."""
    from opennmt.utils.checkpoint import Checkpoint

    ours = average([trained / "run/ckpt-14", trained / "run/ckpt-16"], tmp_path / "avg", provenance={"by": "ckpttool"})
    model = fresh_model(make, trained)
    optimizer = tf.keras.optimizers.legacy.Adam(0.01)
    checkpoint = Checkpoint(model, optimizer, model_dir=str(tmp_path / "avg"))
    assert checkpoint.restore().endswith("ckpt-16")
    values = loaded(ours)
    embedding = model.examples_inputter.features_inputter.embedding
    assert np.array_equal(embedding.numpy(), values["", "model/examples_inputter/features_inputter/embedding"])
    assert optimizer.iterations.numpy() == 16
    optimizer.apply_gradients([(tf.ones_like(v), v) for v in model.trainable_variables])  # makes the slots
    assert np.all(np.abs(optimizer.get_slot(embedding, "m").numpy() - 0.1) < 1e-6)
    assert checkpoint.save(17).endswith("ckpt-17")


@pytest.mark.parametrize("keep_state", [True, False])
def test_tensorflow_restores_objects(make, tf, tmp_path, keep_state):
    prefix = DATA / "keras/ckpt-3"
    checkpoint = bundles.read(prefix)
    artifact = artifact_like(checkpoint, keep_state=keep_state, provenance={"by": "ckpttool"})
    doubled = {t: (a if a.dtype == bool else a * 2) for t, a in loaded(checkpoint).items()}
    fill(bundles.lay_out(artifact), tmp_path / "out", artifact, doubled)
    assert tf.train.latest_checkpoint(str(tmp_path / "out")) == str(tmp_path / "out/ckpt-3")
    if tf.keras.__version__ >= "3":
        pytest.skip("these objects are Keras 2's, and have no slots of this name in Keras 3")
    objects = make.keras_objects()
    for variable in objects["model"].variables:
        variable.assign(tf.zeros_like(variable))
    moment = next(v for v in objects["optimizer"].variables if v.name.startswith("Adam/m/") and v.shape.rank == 2)
    moment.assign(tf.fill(moment.shape, 5.0))
    status = tf.train.Checkpoint(**objects).read(str(tmp_path / "out/ckpt-3"))
    if keep_state:
        status.assert_consumed()
    else:
        status.expect_partial()
    kernel = objects["model"].layers[0].kernel.numpy()
    assert np.array_equal(kernel, doubled["", "model/layer_with_weights-0/kernel"])
    assert objects["note"].numpy().decode() == "grüß"
    assert objects["step"].numpy() == 3
    assert objects["optimizer"].iterations.numpy() == 3
    if keep_state:
        original = make.keras_objects()["optimizer"]
        tf.train.Checkpoint(optimizer=original).read(str(prefix)).expect_partial()
        for ours, theirs in zip(objects["optimizer"].variables, original.variables, strict=True):
            assert np.array_equal(ours.numpy(), theirs.numpy())
    else:
        assert np.all(moment.numpy() == 5.0)
    only_model = make.keras_objects()["model"]
    tf.train.Checkpoint(model=only_model).restore(str(tmp_path / "out/ckpt-3")).expect_partial()
    assert np.array_equal(only_model.layers[0].kernel.numpy(), kernel)


def test_tensorflow_checks_our_checksums_and_reads_every_entry(tf, tmp_path):
    for folder in ("keras/ckpt-3", "dtypes/ckpt-1", "shards/ckpt-5", "tf1/model.ckpt-7"):
        checkpoint = bundles.read(DATA / folder)
        artifact = artifact_like(checkpoint, keep_state=True, provenance={"by": "ckpttool"})
        output = tmp_path / folder.split("/")[0]
        fill(bundles.lay_out(artifact), output, artifact, loaded(checkpoint))
        ours = tf.train.load_checkpoint(str(output / folder.split("/")[1]))
        theirs = tf.train.load_checkpoint(str(DATA / folder))
        shapes = theirs.get_variable_to_shape_map()
        assert ours.get_variable_to_shape_map().keys() - {"_CKPTTOOL_PROVENANCE"} == shapes.keys()
        assert ours.get_tensor("_CKPTTOOL_PROVENANCE") == b'{"by": "ckpttool"}'
        for name in shapes:
            one, other = np.asarray(ours.get_tensor(name)), np.asarray(theirs.get_tensor(name))
            assert one.dtype == other.dtype
            assert one.tolist() == other.tolist()


def test_tensorflow_restores_the_optimizer_of_tensorflow_1(tf, tmp_path):
    checkpoint = bundles.read(DATA / "tf1/model.ckpt-7")
    artifact = artifact_like(checkpoint, keep_state=True)
    fill(bundles.lay_out(artifact), tmp_path, artifact, loaded(checkpoint))
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variable = tf.compat.v1.get_variable("scope/w", shape=(1, 2))
        tf.compat.v1.train.Saver().restore(session, str(tmp_path / "model.ckpt-7"))
        assert np.array_equal(session.run(variable), loaded(checkpoint)["", "scope/w"])


def saved(tf, directory, seed):
    """A checkpoint with numbers and an array of strings, as TensorFlow writes it."""
    values = np.random.default_rng(seed).standard_normal((200, 30)).astype(np.float32)
    words = tf.Variable([b"the", b"", b"words" * 50], dtype=tf.string)
    half = tf.Variable(values[:3], dtype=tf.bfloat16)
    return Path(
        tf.train.Checkpoint(w=tf.Variable(values), half=half, words=words).write(str(directory / f"ckpt-{seed}"))
    )


@pytest.mark.parametrize("key", ["w", "half", "words"])
@pytest.mark.parametrize("position", [0, 100, -1])
def test_what_tensorflow_refuses_is_refused(tf, tmp_path, key, position):
    prefixes = [saved(tf, tmp_path, seed) for seed in (1, 2)]
    paths = [prefix.with_name(f"{prefix.name}.index") for prefix in prefixes]
    execute(make_plan(from_paths(paths), tmp_path / "sound"))
    full = f"{key}/.ATTRIBUTES/VARIABLE_VALUE"
    reader = tf.train.load_checkpoint(str(tmp_path / "sound/ckpt-2"))
    assert reader.get_tensor("words/.ATTRIBUTES/VARIABLE_VALUE").tolist() == [b"the", b"", b"words" * 50]
    reader.get_tensor(full)
    bundle = bundles.read(paths[1]).container
    entry = bundle.entries[full]
    data = bytearray(bundle.data_file(entry).read_bytes())
    data[entry.offset + position % entry.nbytes] ^= 0x20
    bundle.data_file(entry).write_bytes(data)
    with pytest.raises(tf.errors.OpError):
        tf.train.load_checkpoint(str(prefixes[1])).get_tensor(full)
    with pytest.raises(UnreadableError, match=f"{key}.* is damaged"):
        execute(make_plan(from_paths(paths), tmp_path / "out"))
    assert not (tmp_path / "out").exists()
