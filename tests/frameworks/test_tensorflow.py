"""TensorFlow: checkpoints of tf.train.CheckpointManager with a Keras 3 model and optimizer, restored as they are."""

from __future__ import annotations

import os

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
tf = pytest.importorskip("tensorflow", minversion="2.16")  # the first with Keras 3


def objects():
    model = tf.keras.Sequential([tf.keras.layers.Dense(3), tf.keras.layers.BatchNormalization()])
    model.build((None, 2))
    optimizer = tf.keras.optimizers.Adam(0.05)
    optimizer.build(model.trainable_variables)
    return {"model": model, "optimizer": optimizer, "step": tf.Variable(0, dtype=tf.int64)}


def values(variables):
    return [variable.numpy() for variable in variables]


@pytest.fixture
def trained(tmp_path):
    made = objects()
    manager = tf.train.CheckpointManager(
        tf.train.Checkpoint(**made), str(tmp_path / "run"), max_to_keep=None, step_counter=made["step"]
    )
    states = {}
    random = np.random.default_rng(0)
    for step in range(1, 5):
        with tf.GradientTape() as tape:
            outputs = made["model"](random.normal(size=(8, 2)).astype(np.float32), training=True)
            loss = tf.reduce_sum(outputs**2 + outputs)
        variables = made["model"].trainable_variables
        made["optimizer"].apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        made["step"].assign(step)
        manager.save(checkpoint_number=step)
        states[step] = values(made["model"].variables), values(made["optimizer"].variables)
    return tmp_path / "run", states


@pytest.mark.parametrize("keep_state", [False, True])
def test_a_checkpoint_restores_the_average(average, trained, keep_state):
    run, states = trained
    said = average(run, "--last", 3, *(["--keep-state"] if keep_state else []))
    assert said.steps == [2, 3, 4]
    latest = tf.train.latest_checkpoint(str(run / "avg")) or str(said.output)
    made = objects()
    status = tf.train.Checkpoint(**made).restore(latest)
    status.expect_partial() if not keep_state else status.assert_existing_objects_matched()
    for index, found in enumerate(values(made["model"].variables)):
        members = [states[step][0][index].astype(np.float64) for step in said.steps]
        expected = (sum(members) / 3).astype(np.float32) if found.dtype == np.float32 else members[-1]
        assert np.array_equal(found, expected)
    if keep_state:
        for ours, theirs in zip(values(made["optimizer"].variables), states[4][1], strict=True):
            assert np.array_equal(ours, theirs)
