"""Weights, copies, training state and step are found wherever frameworks put them."""

import math
from pathlib import Path

import pytest

from ckpttool.errors import UnreadableError, UnsupportedError, UsageError
from ckpttool.formats import container
from ckpttool.formats.sections import StatePart, locate
from ckpttool.tensors import DTYPES, Extent, TensorSpec


def tensor(*shape, dtype="float32"):
    kind = DTYPES[dtype]
    return TensorSpec(kind, shape, Extent(Path("x"), 0, math.prod(shape) * kind.itemsize))


def weights(prefix=""):
    return {f"{prefix}encoder.w": tensor(2, 3), f"{prefix}encoder.b": tensor(3), f"{prefix}decoder.w": tensor(5, 2)}


NAMES = ["encoder.w", "encoder.b", "decoder.w"]


def adam():
    state = {0: {"step": 7, "exp_avg": tensor(2, 3), "exp_avg_sq": tensor(2, 3)}}
    return {"state": state, "param_groups": [{"lr": 0.1, "params": [0]}]}


class Opaque:
    """A stand-in for an inert object of a class that is not installed."""


@pytest.mark.parametrize(
    "section",
    [
        "model",
        "state_dict",
        "model_state",
        "model_state_dict",
        "module",
        "params",
        "net",
        "network",
        "weights",
        "generator",
    ],
)
def test_weights_are_found_under_the_usual_keys(section):
    found = locate({"epoch": 3, section: weights(), "optimizer": adam(), "args": Opaque()})
    assert list(found.weights) == NAMES
    assert found.weights["encoder.w"] == (section, "encoder.w")
    assert found.section == section
    assert found.state == (StatePart(("optimizer",), "delete"),)
    assert found.values == {"epoch": 3}


def test_a_bare_state_dict_is_its_own_section():
    found = locate(weights())
    assert list(found.weights) == NAMES
    assert (found.section, found.copies, found.state) == ("", {}, ())


def test_a_bare_state_dict_with_foreign_entries_is_still_bare():
    found = locate({**weights(), "layer._extra_state": None, "version": 2, "n_averaged": tensor(dtype="int64")})
    assert list(found.weights) == [*NAMES, "n_averaged"]
    assert found.section == ""


@pytest.mark.parametrize(
    ("tree", "section"),
    [
        ({"checkpoint": {"model": weights(), "optimizer": adam(), "step": 5}}, "checkpoint.model"),
        ({"model": {"state_dict": weights(), "config": Opaque()}, "step": 5}, "model.state_dict"),
        ({"a": {"b": {"c": weights()}}, "step": 5}, "a.b.c"),
        ({"state": {"model": weights(), "optimizers": {"Adam": adam()}}, "step": 5}, "state.model"),
    ],
)
def test_weights_are_found_one_level_further_down(tree, section):
    found = locate(tree)
    assert (list(found.weights), found.section, found.step) == (NAMES, section, 5)


def test_state_one_level_further_down_goes_with_the_weights():
    found = locate({"checkpoint": {"model": weights(), "optimizer": adam()}})
    assert found.state == (StatePart(("checkpoint", "optimizer"), "delete"),)


def test_nested_weights_get_dotted_names():
    found = locate(
        {"model": {"embedding": {"word": {"weight": tensor(4, 2)}}, "layers": [tensor(2), tensor(2)]}, "it": 1}
    )
    assert list(found.weights) == ["embedding.word.weight", "layers.0", "layers.1"]
    assert found.weights["layers.1"] == ("model", "layers", 1)


def test_several_modules_and_nothing_else_are_one_model():
    assert list(locate({"enc": {"w": tensor(2)}, "dec": {"w": tensor(3)}}).weights) == ["enc.w", "dec.w"]


def test_opennmt_py_keeps_its_model_in_two_pieces():
    tree = {"model": weights(), "generator": {"0.weight": tensor(9, 2)}, "vocab": {}, "opt": Opaque(), "optim": adam()}
    found = locate(tree)
    assert list(found.weights) == [*NAMES, "generator.0.weight"]
    assert found.weights["generator.0.weight"] == ("generator", "0.weight")
    assert found.section == "model+generator"
    assert found.state == (StatePart(("optim",), "none"),)
    assert locate(tree, "model+generator").weights == found.weights


# --- the user's say --------------------------------------------------------------------------------------------


def test_the_user_may_name_the_section_also_through_keys_with_dots():
    tree = {"model": weights(), "my.ema": {"v1": weights()}}
    assert locate(tree, "my.ema.v1").weights["encoder.w"] == ("my.ema", "v1", "encoder.w")
    assert locate(tree, "my.ema.v1").section == "my.ema.v1"


@pytest.mark.parametrize("section", ["nope", "model.encoder", "epoch", "model+nope"])
def test_a_section_that_is_not_there_lists_those_that_are(section):
    with pytest.raises(UsageError) as caught:
        locate({"model": weights(), "epoch": 3}, section, path="a.pt")
    assert "a.pt" in str(caught.value)
    assert "model (3 tensors)" in caught.value.hint


def test_two_equally_good_places_are_a_question():
    with pytest.raises(UsageError, match="model or module") as caught:
        locate({"model": weights(), "module": {"other": tensor(7)}, "epoch": 1})
    assert "section='model' or section='module'" in caught.value.hint
    with pytest.raises(UsageError, match=r"en \(3 tensors\)") as caught:
        locate({"en": weights(), "de": weights(), "en_opt": adam(), "loss": 0.1})
    assert "section='en" in caught.value.hint


def test_a_file_without_weights_is_refused_with_its_keys():
    with pytest.raises(UnsupportedError) as caught:
        locate({"optimizer": adam(), "step": 3})
    assert "optimizer" in caught.value.hint
    with pytest.raises(UnsupportedError):
        locate({})
    with pytest.raises(UnsupportedError, match="pickled object"):
        locate({"model": Opaque(), "epoch": 3})


# --- copies ----------------------------------------------------------------------------------------------------

COPIES = {
    "timm": ({"state_dict": weights(), "state_dict_ema": weights()}, ["state_dict_ema"]),
    "torchvision": (
        {"model": weights(), "model_ema": {"n_averaged": tensor(dtype="int64"), **weights("module.")}},
        ["model_ema"],
    ),
    "DiT": ({"model": weights(), "ema": weights(), "opt": adam()}, ["ema"]),
    "BasicSR": ({"params": weights(), "params_ema": weights()}, ["params_ema"]),
    "RT-DETR": ({"model": weights(), "ema": {"module": weights(), "updates": 5}}, ["ema.module"]),
    "RF-DETR": ({"model": weights(), "ema_model": weights()}, ["ema_model"]),
    "pycls": ({"model_state": weights(), "ema_state": weights()}, ["ema_state"]),
    "OpenFold": ({"state_dict": weights("model."), "ema": {"params": weights(), "decay": 0.999}}, ["ema.params"]),
    "fairseq": (
        {"model": weights(), "extra_state": {"ema": weights(), "ema_fp32_params": weights(), "epoch": 2}},
        ["extra_state.ema", "extra_state.ema_fp32_params"],
    ),
    "icefall": ({"model": weights(), "model_avg": weights(), "batch_idx_train": 8}, ["model_avg"]),
    "DINO": ({"student": weights("module.backbone."), "teacher": weights("backbone."), "epoch": 1}, ["teacher"]),
    "V-JEPA": ({"encoder": weights("module."), "target_encoder": weights("module."), "epoch": 1}, ["target_encoder"]),
    "mmengine": (
        {
            "state_dict": weights(),
            "ema_state_dict": {"steps": tensor(dtype="int64"), **weights("module.")},
            "meta": {"iter": 4},
        },
        ["ema_state_dict"],
    ),
    "lightning": (
        {
            "state_dict": weights(),
            "current_model_state": weights("module."),
            "averaging_state": {"n_averaged": tensor()},
        },
        ["current_model_state"],
    ),
    "lightning callback": (
        {"state_dict": weights(), "callbacks": {"EMA{'decay': 0.9}": {"ema_state_dict": weights()}}},
        ["callbacks.EMA{'decay': 0.9}.ema_state_dict"],
    ),
    "composer": (
        {"state": {"model": weights(), "algorithms": [("EMA", {"ema_model": {"named_parameters_dict": weights()}})]}},
        ["state.algorithms.0.1.ema_model.named_parameters_dict"],
    ),
    "ema-pytorch": ({"model": weights(), "ema": {"initted": tensor(dtype="bool"), **weights("ema_model.")}}, ["ema"]),
    "torch_ema": (
        {"model": weights(), "ema": {"decay": 0.9, "shadow_params": [tensor(2, 3), tensor(3), tensor(5, 2)]}},
        ["ema.shadow_params"],
    ),
    "data2vec": ({"model": {**weights(), "_ema": weights()}, "extra_state": {}}, ["model._ema"]),
    "part of the model": ({"model": weights(), "ema": {"w": tensor(2, 3), "b": tensor(3)}}, ["ema"]),
}


@pytest.mark.parametrize("name", COPIES)
def test_averages_next_to_the_weights_are_found_under_their_own_names(name):
    tree, sections = COPIES[name]
    found = locate(tree)
    assert list(found.copies) == sections
    assert len([key for key in found.weights if key.endswith(("encoder.w", "encoder.b", "decoder.w"))]) == 3
    for section, names in found.copies.items():
        for key, path in names.items():
            node = tree
            for step in path:
                node = node[step]
            assert isinstance(node, TensorSpec)
            assert section in ".".join(map(str, path))
            assert key
    assert not any("ema" in note for note in found.notes)


@pytest.mark.parametrize(
    "tree",
    [
        {"model": weights(), "ema": {"encoder.w": tensor(9, 9), "other": tensor(3)}},
        {"model": weights(), "ema_sched": {"power": 0.7, "last": tensor()}},
        {"model": weights(), "optimizer": {"ema": [tensor(2, 3), tensor(3), tensor(5, 2)], "opt": adam()}},
        {"model": weights(), "target_mean": [tensor(77)]},
    ],
)
def test_what_does_not_fit_the_weights_is_no_copy(tree):
    assert locate(tree).copies == {}


def test_tensors_that_are_not_averaged_are_said():
    (note,) = locate(
        {"generator": weights(), "discriminator": {"w": tensor(4)}, "step": 1, "rng": tensor(8, dtype="uint8")}
    ).notes
    assert "discriminator (1)" in note
    assert "rng" not in note


def test_single_numbers_next_to_the_weights_are_not_reported():
    """fairseq's meters: extra_state.metrics holds dozens of them."""
    meters = [("default", "loss", {"val": tensor(), "sum": tensor(1)})]
    assert locate({"model": weights(), "extra_state": {"metrics": meters}}).notes == ()


# --- training state --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tree", "state"),
    [
        (
            {"model": weights(), "optimizer_history": [{"num_updates": 9}], "last_optimizer_state": adam()},
            [(("last_optimizer_state",), "none")],
        ),
        (
            {
                "pytorch-lightning_version": "2.4",
                "state_dict": weights(),
                "loops": {"fit_loop": {}},
                "optimizer_states": [adam()],
                "lr_schedulers": [{"last_epoch": 1}],
            },
            [(("optimizer_states",), "empty_list"), (("lr_schedulers",), "empty_list")],
        ),
        (
            {
                "model_state": weights(),
                "optimizer_state": adam(),
                "scheduler_state": {"step": 4},
                "scaler_state": {"scale": 2.0},
            },
            [(("optimizer_state",), "none"), (("scheduler_state",), "none"), (("scaler_state",), "none")],
        ),
        (
            {"ds_version": "0.9", "module": weights(), "optimizer": adam(), "lr_scheduler": {"x": 1}},
            [(("optimizer",), "none"), (("lr_scheduler",), "none")],
        ),
        ({"model": weights(), "optimizer": Opaque(), "opt": Opaque(), "step": 1}, [(("optimizer",), "delete")]),
        ({"model": weights(), "optimizer": "adam", "scheduler": {"name": "noam"}, "opt": {"lr": 0.1}}, []),
        (
            {"model": weights(), "opt": adam(), "sched": {"last_epoch": 4}},
            [(("opt",), "delete"), (("sched",), "delete")],
        ),
        (
            {"model": weights(), "optimizers": [adam(), adam()], "grad_scaler": {"growth_factor": 2.0}},
            [(("optimizers",), "delete"), (("grad_scaler",), "delete")],
        ),
        ({"model": weights(), "optimizer": None}, []),
        (
            {"model": weights(), "optimizer_g": adam(), "optim_d": adam()},
            [(("optimizer_g",), "delete"), (("optim_d",), "delete")],
        ),
        (
            {"model": weights(), "trainer": {"iteration": 5, "optimizer": adam()}},
            [(("trainer", "optimizer"), "delete")],
        ),
    ],
)
def test_training_state_is_told_from_configuration(tree, state):
    found = locate(tree)
    assert [(part.path, part.replacement) for part in found.state] == state
    assert list(found.weights) == NAMES
    assert not any(key.startswith("optimizer.") for key in found.values)


# --- step and values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "step"),
    [
        ({"global_step": 100, "step": 3}, 100),
        ({"step": 7}, 7),
        ({"steps": 7}, 7),
        ({"num_updates": 7}, 7),
        ({"optimizer_history": [{"num_updates": 3}, {"num_updates": 9}]}, 9),
        ({"iteration": 7}, 7),
        ({"iter": 7}, 7),
        ({"meta": {"iter": 7, "epoch": 1}}, 7),
        ({"batch_idx_train": 7}, 7),
        ({"train_steps": 7}, 7),
        ({"optim": {"training_step": 8}}, 7),  # the update that comes next
        ({"updates": 7}, 7),
        ({"epoch": 7}, None),
        ({"step": -1}, None),
        ({"step": True}, None),
        ({"step": "7"}, None),
        ({"step": 7.5}, None),
        ({"step": -1, "iteration": 4}, 4),
        ({"optimizer": {"step": 4, "state": {0: {"step": 5, "m": tensor(3)}}}}, None),
        ({}, None),
    ],
)
def test_the_step_is_the_content_s_own_and_never_the_optimizer_s(extra, step):
    assert locate({"model": weights(), **extra}).step == step


def test_values_are_plain_small_and_without_training_state():
    tree = {
        "model": weights(),
        "metrics": {"val": [{"loss": 0.5}]},
        "name": "m",
        "big": "x" * 1000,
        "optimizer": adam(),
        "args": Opaque(),
    }
    assert locate(tree).values == {"metrics.val.0.loss": 0.5, "name": "m"}


# --- malicious trees ---------------------------------------------------------------------------------------------


def test_a_tree_that_contains_itself_ends():
    tree = {"model": weights(), "step": 5}
    tree["self"] = tree
    tree["loop"] = [tree]
    assert list(locate(tree).weights) == NAMES
    knot = {"w": tensor(2)}
    knot["again"] = knot
    with pytest.raises(UnreadableError, match="nest without end"):
        locate({"model": knot})


def test_shared_containers_do_not_multiply(monkeypatch):
    monkeypatch.setattr(container, "MAX_NODES", 10_000)
    bomb = [0]
    for _ in range(60):
        bomb = [bomb, bomb]
    assert list(locate({"model": weights(), "junk": bomb}).weights) == NAMES
    with pytest.raises(UnreadableError):
        locate({"model": {**weights(), "junk": bomb}})


def test_deep_trees_end():
    deep = {}
    for _ in range(5000):
        deep = {"a": deep}
    assert list(locate({"model": weights(), "deep": deep}).weights) == NAMES


def test_two_tensors_of_one_name_are_refused():
    with pytest.raises(UnsupportedError, match=r"a\.b"):
        locate({"model": {"a.b": tensor(2), "a": {"b": tensor(2)}}})
