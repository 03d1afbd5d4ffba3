"""Write the checkpoints in this directory, with TensorFlow 2.13 and OpenNMT-tf 2.32.

python -m pip install tensorflow-cpu==2.13.1 tensorflow-addons==0.21.0 OpenNMT-tf
python tests/data/tensorflow/make.py

opennmt-tf.tar.xz   a run of OpenNMT-tf: ckpt-2, -4, -6 and avg/ckpt-6, its own average of the three
keras/ckpt-3        a Keras model, its optimizer (without slot markers), a counter, a string, a bool
dtypes/ckpt-1       a variable of each element type
shards/ckpt-5       two data files, as several hosts write them
partitioned/ckpt-1  a variable in slices
tf1/model.ckpt-7    TensorFlow 1: names without objects, Adam's slots, moving averages
*.npz               what TensorFlow reads from each of the last but the partitioned one (bfloat16 as its bits)
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import numpy as np
import tensorflow as tf

HERE = Path(__file__).parent


def train_opennmt(directory: Path, *, steps: int = 6, every: int = 2) -> Path:
    """Train a Transformer of 50 small variables with OpenNMT-tf; return its model directory."""
    run, _ = opennmt_runner(directory, steps=steps, every=every)
    run.train()
    return directory / "run"


def opennmt_runner(directory: Path, *, steps: int = 6, every: int = 2):
    """A runner of OpenNMT-tf, and its model."""
    import opennmt

    (directory / "src.txt").write_text("a b\nb a c\nc\n" * 8)
    (directory / "tgt.txt").write_text("b a\nc a b\nc\n" * 8)
    (directory / "vocab.txt").write_text("<blank>\n<s>\n</s>\na\nb\nc\n")
    embed = opennmt.inputters.WordEmbedder
    model = opennmt.models.Transformer(
        embed(embedding_size=4), embed(embedding_size=4), num_layers=1, num_units=4, num_heads=2, ffn_inner_dim=4
    )
    config = {
        "model_dir": str(directory / "run"),
        "data": {
            "source_vocabulary": str(directory / "vocab.txt"),
            "target_vocabulary": str(directory / "vocab.txt"),
            "train_features_file": str(directory / "src.txt"),
            "train_labels_file": str(directory / "tgt.txt"),
        },
        "params": {
            "optimizer": "LazyAdam",
            "learning_rate": 1.0,
            "decay_type": "NoamDecay",
            "decay_params": {"model_dim": 4, "warmup_steps": 4},
        },
        "train": {
            "batch_size": 4,
            "batch_type": "examples",
            "max_step": steps,
            "save_checkpoints_steps": every,
            "save_summary_steps": 1000,
            "keep_checkpoint_max": 100,
        },
    }
    return opennmt.Runner(model, config, seed=1), model


def keras_objects():
    """A model, an optimizer that has taken three steps, and what else a checkpoint may hold."""
    tf.keras.utils.set_random_seed(1)
    model = tf.keras.Sequential([tf.keras.layers.Dense(3), tf.keras.layers.BatchNormalization()])
    optimizer = tf.keras.optimizers.Adam(0.1)
    inputs = tf.random.normal((8, 2))
    for _ in range(3):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model(inputs, training=True) ** 3)
        optimizer.apply_gradients(
            zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True)
        )
    return {
        "model": model,
        "optimizer": optimizer,
        "step": tf.Variable(3, dtype=tf.int64),
        "note": tf.Variable("grüß"),
        "frozen": tf.Variable(True),
    }


def all_dtypes():
    """A variable of each element type that tf.Variable takes."""
    numbers = np.array([[0, 1, 2], [3, 4, 5]])
    types = (
        *("float32", "float64", "float16", "bfloat16", "complex64", "complex128", "bool"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    )
    variables = {f"v_{name}": tf.Variable(tf.cast(numbers, name)) for name in types}
    variables["empty"] = tf.Variable(np.zeros((0, 3), np.float32))
    variables["words"] = tf.Variable(["a", "", "long" * 50])
    return variables


def tf1(directory: Path) -> None:
    """A checkpoint of TensorFlow 1, and one with a partitioned variable."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        weight = v1.get_variable("scope/w", initializer=tf.constant([[1.0, 2.0]]), use_resource=False)
        step = v1.train.get_or_create_global_step()
        with v1.variable_scope("training"):
            train = v1.train.AdamOptimizer(0.1).minimize(tf.reduce_sum(weight**2), global_step=step)
        average = tf.train.ExponentialMovingAverage(0.5)
        with tf.control_dependencies([train]):
            apply = average.apply([weight])
        session.run(v1.global_variables_initializer())
        for _ in range(7):
            session.run(apply)
        v1.train.Saver().save(session, str(directory / "tf1/model.ckpt"), global_step=7, write_meta_graph=False)
    with tf.Graph().as_default(), v1.Session() as session:
        v1.get_variable(
            "w", shape=(4, 2), partitioner=tf.compat.v1.fixed_size_partitioner(2), initializer=tf.zeros_initializer()
        )
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, str(directory / "partitioned/ckpt"), global_step=1, write_meta_graph=False)


def shards(prefix: Path) -> None:
    """Two shards, saved and merged as hosts of a cluster do."""
    parts = [str(prefix.parent / f"part-{i}") for i in range(2)]
    for part, names in zip(parts, (("a", "c"), ("b",)), strict=True):
        tensors = [tf.constant(np.arange(6, dtype=np.float32).reshape(2, 3) + ord(name)) for name in names]
        tf.raw_ops.SaveV2(prefix=part, tensor_names=names, shape_and_slices=[""] * len(names), tensors=tensors)
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=str(prefix), delete_old_dirs=False)


def expected(prefix: Path) -> dict[str, np.ndarray]:
    """What TensorFlow reads. bfloat16 as its bits, strings not at all."""
    reader = tf.train.load_checkpoint(str(prefix))
    arrays = {}
    for name, dtype in reader.get_variable_to_dtype_map().items():
        if dtype == tf.string:
            continue
        value = np.asarray(reader.get_tensor(name))
        arrays[name.replace("/", "|")] = value.view(np.uint16) if dtype == tf.bfloat16 else value
    return arrays


def pack(directory: Path, target: Path, names: list[str]) -> None:
    """A tar whose bytes depend on the files' names and contents alone."""
    with tarfile.open(target, "w:xz") as tar:
        for name in names:
            data = (directory / name).read_bytes()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        run = train_opennmt(work)
        opennmt_runner(work)[0].average_checkpoints(str(run / "avg"), max_count=3)
        names = [f"ckpt-{step}.{end}" for step in (2, 4, 6) for end in ("index", "data-00000-of-00001")]
        names += ["checkpoint", "avg/checkpoint", "avg/ckpt-6.index", "avg/ckpt-6.data-00000-of-00001"]
        pack(run, HERE / "opennmt-tf.tar.xz", names)
    for folder in ("keras", "dtypes", "shards", "partitioned", "tf1"):
        shutil.rmtree(HERE / folder, ignore_errors=True)
        (HERE / folder).mkdir()
    tf.train.Checkpoint(**keras_objects()).write(str(HERE / "keras/ckpt-3"))
    tf.train.Checkpoint(**all_dtypes()).write(str(HERE / "dtypes/ckpt-1"))
    shards(HERE / "shards/ckpt-5")
    tf1(HERE)
    for prefix in ("keras/ckpt-3", "dtypes/ckpt-1", "shards/ckpt-5", "tf1/model.ckpt-7"):
        np.savez_compressed(HERE / f"{prefix.split('/')[0]}.npz", **expected(HERE / prefix))
    for leaving in (*HERE.glob("*/checkpoint"), *HERE.glob("shards/part*")):
        leaving.unlink()


if __name__ == "__main__":
    sys.exit(main())
