"""Moving averages that checkpoints hold: each framework's layout by its documented keys, and what must be refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ckpttool.ema.files import find_stored_average, folder_average
from ckpttool.ema.stored_average import StoredAverage
from ckpttool.engine.run import execute
from ckpttool.errors import MismatchError, NotFoundError, UnreadableError, UnsupportedError, UsageError
from ckpttool.formats import container
from ckpttool.formats.average_keys import COPY_KEYS, FLATTENED_LISTS, LISTS, PREFIXES, SLOTS, Slot
from ckpttool.operations.stored_ema import make_stored_plan
from ckpttool.planning.request import Policy
from ckpttool.reading.snapshot import Snapshot
from ckpttool.reading.storage import LocalStorage
from ckpttool.reading.values import read_values

State = dict[str, torch.Tensor]

SHAPES: dict[str, tuple[int, ...]] = {
    "conv1.weight": (4, 3, 3),
    "bn1.weight": (4,),
    "bn1.bias": (4,),
    "bn1.running_mean": (4,),
    "bn1.running_var": (4,),
    "bn1.num_batches_tracked": (),
    "block.0.fc.weight": (5, 4),
    "block.0.fc.bias": (5,),
    "head.weight": (7, 5),
}
PARAMETERS = [name for name in SHAPES if "running" not in name and "num_batches" not in name]


def weights(seed: int) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.tensor(seed) if not shape else torch.randn(shape, generator=generator)
        for name, shape in SHAPES.items()
    }


RAW = weights(1)
OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}


def near(seed: int = 2) -> State:
    """An average as training has it: near the trained weights."""
    other = weights(seed)
    return {name: value + 0.05 * other[name] if value.is_floating_point() else value - 1 for name, value in RAW.items()}


AVERAGE = near()
AVERAGED_PARAMETERS = {name: AVERAGE[name] for name in PARAMETERS}


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def flat(state: State, dot: str = "") -> State:
    return {name.replace(".", dot): value for name, value in state.items()}


def save(path: Path, tree: Any) -> Path:
    torch.save(tree, path)
    return path


def values(found: StoredAverage) -> dict[str, np.ndarray[Any, Any]]:
    return {name: read_values(spec) for name, spec in found.weights().items()}


def expect(found: StoredAverage, average: State, trained: State = RAW) -> None:
    """What comes out is the average where it has a tensor of real numbers, else the trained weight."""
    got = values(found)
    for name, value in got.items():
        wanted = average.get(name)
        if wanted is None or not wanted.is_floating_point():
            wanted = trained[name]
        np.testing.assert_array_equal(value, wanted.numpy(), err_msg=name)


# (what, file content, where the average is found, names that it covers)
NEXT_TO_WEIGHTS: list[tuple[str, Any, str]] = [
    (
        "timm",
        {"state_dict": RAW, "state_dict_ema": AVERAGE, "arch": "a", "version": 2, "optimizer": OPTIMIZER},
        "state_dict_ema",
    ),
    (
        "torchvision",
        {
            "model": RAW,
            "model_ema": {**prefixed("module.", AVERAGE), "n_averaged": torch.tensor(5)},
            "optimizer": OPTIMIZER,
            "epoch": 3,
        },
        "model_ema",
    ),
    ("DeiT", {"model": RAW, "model_ema": AVERAGE, "optimizer": OPTIMIZER, "scaler": {}}, "model_ema"),
    (
        "k-diffusion",
        {"model": RAW, "model_ema": AVERAGE, "ema_sched": {"inv_gamma": 1.0, "power": 0.66}, "opt": OPTIMIZER},
        "model_ema",
    ),
    ("DiT", {"model": RAW, "ema": AVERAGE, "opt": OPTIMIZER, "args": {"lr": 1e-4}}, "ema"),
    ("BasicSR", {"params": RAW, "params_ema": AVERAGE}, "params_ema"),
    ("RT-DETR", {"model": RAW, "ema": {"module": AVERAGE, "updates": 100}, "optimizer": OPTIMIZER}, "ema.module"),
    ("RF-DETR", {"model": RAW, "ema_model": AVERAGE, "optimizer": OPTIMIZER}, "ema_model"),
    ("pycls", {"model_state": RAW, "ema_state": AVERAGE, "test_err": 25.0, "ema_err": 24.0}, "ema_state"),
    ("d2go", {"state_dict": RAW, "model_ema": AVERAGE}, "model_ema"),
    ("OpenFold", {"state_dict": prefixed("model.", RAW), "ema": {"params": AVERAGE, "decay": 0.999}}, "ema.params"),
    ("deepmd-kit", {"model": RAW, "ema": {"model": AVERAGE, "decay": 0.999, "validation_state": {}}}, "ema.model"),
    (
        "fairseq",
        {"model": RAW, "extra_state": {"ema": AVERAGE, "epoch": 1}, "optimizer_history": [{"num_updates": 9}]},
        "extra_state.ema",
    ),
    ("icefall", {"model": RAW, "model_avg": AVERAGE, "average_period": 200, "batch_idx_train": 4000}, "model_avg"),
    (
        "DINO",
        {"student": prefixed("module.backbone.", RAW), "teacher": prefixed("backbone.", AVERAGE), "dino_loss": {}},
        "teacher",
    ),
    (
        "I-JEPA",
        {
            "encoder": prefixed("module.", RAW),
            "predictor": {"module.x": torch.zeros(2)},
            "target_encoder": prefixed("module.", AVERAGE),
        },
        "target_encoder",
    ),
    ("AllenNLP", {"model": RAW, "moving_average": {"shadows": AVERAGE, "backups": {}}}, "moving_average.shadows"),
    (
        "Lightning callback",
        {"state_dict": RAW, "callbacks": {"EMA": {"ema_state_dict": AVERAGE}}, "pytorch-lightning_version": "2.1.0"},
        "callbacks.EMA.ema_state_dict",
    ),
    (
        "Lightning SWA",
        {
            "state_dict": RAW,
            "callbacks": {"StochasticWeightAveraging{}": {"average_model_state": AVERAGE}},
            "pytorch-lightning_version": "2.1.0",
        },
        "callbacks.StochasticWeightAveraging{}.average_model_state",
    ),
    (
        "denoising-diffusion-pytorch",
        {
            "model": RAW,
            "ema": {
                "initted": torch.tensor(True),
                "step": torch.tensor(10),
                **prefixed("online_model.", RAW),
                **prefixed("ema_model.", AVERAGE),
            },
            "opt": OPTIMIZER,
            "step": 10,
        },
        "ema",
    ),
    (
        "torch.compile and DDP",
        {"model": prefixed("module._orig_mod.", RAW), "model_ema": prefixed("_orig_mod.module.", AVERAGE)},
        "model_ema",
    ),
    (
        "fme",
        {
            "model": prefixed("module.", RAW),
            "ema": {
                "ema_params": flat(AVERAGED_PARAMETERS),
                "module_name_to_ema_name": {name: name.replace(".", "") for name in PARAMETERS},
                "num_updates": torch.tensor(5),
                "faster_decay_at_start": True,
            },
        },
        "ema.ema_params",
    ),
]


def bare(state: State, names: tuple[str, ...]) -> State:
    """A state under the names of the output, which keep the wrappers of the weights."""
    endings = {name: next(full for full in names if full.endswith(name)) for name in state}
    return {endings[name]: value for name, value in state.items()}


@pytest.mark.parametrize(
    ("tree", "where"), [row[1:] for row in NEXT_TO_WEIGHTS], ids=[row[0] for row in NEXT_TO_WEIGHTS]
)
def test_a_set_next_to_the_weights_takes_their_place(tree: Any, where: str, tmp_path: Path) -> None:
    found = find_stored_average(save(tmp_path / "c.pt", tree))
    assert found.where == where
    assert not found.in_place
    assert not found.warnings
    covered = AVERAGED_PARAMETERS if where == "ema.ema_params" else AVERAGE
    expect(found, bare(covered, found.order), bare(RAW, found.order))


INSIDE: list[tuple[str, State, str, State]] = [
    (
        "LitEma around the diffusion model",
        {
            **prefixed("model.diffusion_model.", RAW),
            "model_ema.decay": torch.tensor(0.9999),
            "model_ema.num_updates": torch.tensor(5),
            **prefixed("model_ema.", flat(prefixed("diffusion_model.", AVERAGED_PARAMETERS))),
            "first_stage_model.x": torch.zeros(3),
        },
        "model_ema.*",
        AVERAGED_PARAMETERS,
    ),
    (
        "LitEma around an autoencoder",
        {
            **RAW,
            "model_ema.decay": torch.tensor(0.9999),
            "model_ema.num_updates": torch.tensor(5),
            **prefixed("model_ema.", flat(AVERAGED_PARAMETERS)),
        },
        "model_ema.*",
        AVERAGED_PARAMETERS,
    ),
    ("ema.model", {**prefixed("model.", RAW), **prefixed("ema.model.", AVERAGE)}, "ema.model.*", AVERAGE),
    ("ema_model", {**prefixed("net.", RAW), **prefixed("ema_model.", AVERAGE)}, "ema_model.*", AVERAGE),
    (
        "ema-pytorch in a LightningModule",
        {
            **prefixed("net.", RAW),
            "ema.initted": torch.tensor(True),
            "ema.step": torch.tensor(7),
            **prefixed("ema.ema_model.", AVERAGE),
        },
        "ema.ema_model.*",
        AVERAGE,
    ),
    (
        "a suffix",
        {**prefixed("generator.", RAW), **prefixed("generator_ema.", AVERAGE), "d.weight": torch.zeros(2)},
        "generator_ema.conv1.weight and 8 more",
        AVERAGE,
    ),
    (
        "MoCo",
        {
            **prefixed("module.encoder_q.", RAW),
            **prefixed("module.encoder_k.", AVERAGE),
            "module.queue": torch.zeros(2, 2),
        },
        "module.encoder_k.conv1.weight and 8 more",
        AVERAGE,
    ),
]


@pytest.mark.parametrize(("state", "where", "average"), [row[1:] for row in INSIDE], ids=[row[0] for row in INSIDE])
def test_names_inside_the_state_dict_are_found(state: State, where: str, average: State, tmp_path: Path) -> None:
    found = find_stored_average(save(tmp_path / "c.ckpt", {"state_dict": state, "pytorch-lightning_version": "1.4.2"}))
    assert (found.where, found.in_place) == (where, False)
    assert not any(name.startswith(("ema", "model_ema")) or "_ema." in name for name in found.order)
    got = values(found)
    for name in SHAPES:
        full = next(other for other in found.order if other.endswith(name))
        wanted = average.get(name)
        wanted = RAW[name] if wanted is None or not wanted.is_floating_point() else wanted
        np.testing.assert_array_equal(got[full], wanted.numpy(), err_msg=full)


IN_PLACE: list[tuple[str, Any, State]] = [
    (
        "mmengine",
        {
            "state_dict": AVERAGE,
            "ema_state_dict": {"steps": torch.tensor(9), **prefixed("module.", RAW)},
            "meta": {"iter": 9},
            "optimizer": OPTIMIZER,
        },
        RAW,
    ),
    (
        "mmcv 1",
        {
            "state_dict": {**AVERAGE, **prefixed("ema_", flat({n: RAW[n] for n in PARAMETERS}, "_"))},
            "meta": {"iter": 9},
        },
        RAW,
    ),
    (
        "Lightning 2.6",
        {
            "state_dict": AVERAGE,
            "current_model_state": RAW,
            "averaging_state": {"n_averaged": torch.tensor(9)},
            "pytorch-lightning_version": "2.6.0",
        },
        RAW,
    ),
    (
        "Composer, active",
        {
            "state": {
                "model": AVERAGE,
                "algorithms": [
                    (
                        "EMA",
                        {
                            "ema_model": {
                                "named_parameters_dict": {n: RAW[n] for n in PARAMETERS},
                                "named_buffers_dict": {},
                            },
                            "ema_weights_active": True,
                            "ema_started": True,
                        },
                    )
                ],
            },
            "rng": [],
        },
        RAW,
    ),
    (
        "nequip, swapped",
        {
            "state_dict": {
                **prefixed("model.", AVERAGE),
                **{f"ema.ema_weight_{i}": RAW[n] for i, n in enumerate(PARAMETERS)},
                "ema._extra_state": {"is_holding_ema_weights": False, "decay": 0.99},
            }
        },
        {},
    ),
    ("torch AveragedModel", {**prefixed("module.", AVERAGE), "n_averaged": torch.tensor(9)}, {}),
    ("torch AveragedModel, compiled", {**prefixed("module._orig_mod.", AVERAGE), "n_averaged": torch.tensor(9)}, {}),
    (
        "ema-pytorch",
        {
            "initted": torch.tensor(True),
            "step": torch.tensor(4),
            **prefixed("ema_model.", AVERAGE),
            **prefixed("online_model.", RAW),
        },
        RAW,
    ),
    ("BasicSR release", {"params_ema": AVERAGE}, {}),
    ("DINOv2", {"teacher": AVERAGE}, {}),
    ("OpenNMT-py", {"model": AVERAGE, "opt": {"average_decay": 1e-4}, "optim": None}, {}),
]


@pytest.mark.parametrize(("tree", "trained"), [row[1:] for row in IN_PLACE], ids=[row[0] for row in IN_PLACE])
def test_an_average_in_the_weights_place_is_never_undone(tree: Any, trained: State, tmp_path: Path) -> None:
    found = find_stored_average(save(tmp_path / "c.pth", tree))
    assert found.in_place
    got = values(found)
    assert len(got) == len(SHAPES)
    for name, value in got.items():
        np.testing.assert_array_equal(value, AVERAGE[name.removeprefix("model.")].numpy(), err_msg=name)
    for name in PARAMETERS if trained else ():
        np.testing.assert_array_equal(read_values(found.trained[name]), trained[name].numpy())


def test_flags_decide_composer_and_nequip(tmp_path: Path) -> None:
    named = {"named_parameters_dict": AVERAGED_PARAMETERS, "named_buffers_dict": {}}
    state = {"model": RAW, "algorithms": [("Other", {}), ("EMA", {"ema_model": named, "ema_weights_active": False})]}
    composer = find_stored_average(save(tmp_path / "a.pt", {"state": state}))
    assert not composer.in_place
    expect(composer, AVERAGED_PARAMETERS)
    listed = {f"ema.ema_weight_{i}": AVERAGE[name] for i, name in enumerate(PARAMETERS)}
    extra = {"ema._extra_state": {"is_holding_ema_weights": True, "decay": 0.99, "num_updates": 3}}
    nequip = find_stored_average(save(tmp_path / "b.ckpt", {"state_dict": {**RAW, **listed, **extra}}))
    assert not nequip.in_place
    expect(nequip, AVERAGED_PARAMETERS)


def test_fairseqs_float32_copy_is_better_than_its_half_precision_one(tmp_path: Path) -> None:
    half = {name: value.half() if value.is_floating_point() else value for name, value in AVERAGE.items()}
    tree = {
        "model": {k: v.half() if v.is_floating_point() else v for k, v in RAW.items()},
        "extra_state": {"ema": half, "ema_fp32_params": AVERAGE},
    }
    found = find_stored_average(save(tmp_path / "c.pt", tree))
    assert found.where == "extra_state.ema_fp32_params"
    assert {spec.dtype.name for spec in found.averaged.values()} == {"float32"}


def test_data2vec_keeps_its_average_as_a_mapping_inside_the_state_dict(tmp_path: Path) -> None:
    encoder = prefixed("encoder.", RAW)
    tree = {"model": {**encoder, "final.weight": torch.zeros(3), "_ema": AVERAGE}, "extra_state": {}}
    found = find_stored_average(save(tmp_path / "c.pt", tree))
    assert found.where == "model._ema"
    got = values(found)
    np.testing.assert_array_equal(got["encoder.head.weight"], AVERAGE["head.weight"].numpy())
    assert "final.weight" in found.uncovered


# --- Lists without names ----------------------------------------------------------------------------------------


LISTED = [AVERAGE[name] for name in PARAMETERS]


@pytest.mark.parametrize(
    "tree",
    [
        {"model": RAW, "ema": {"decay": 0.999, "num_updates": 5, "shadow_params": LISTED, "collected_params": []}},
        {"state_dict": RAW, "ema": {"ema_parameters": LISTED, "decay": 0.999}},
    ],
    ids=["shadow_params", "ema_parameters"],
)
def test_a_list_in_the_models_order_is_aligned_by_it(tree: Any, tmp_path: Path) -> None:
    def never(_spec: Any) -> Any:
        raise AssertionError("the order is known, so no value may be read")

    found = find_stored_average(save(tmp_path / "c.pt", tree), values=never)
    assert any("by the order" in note for note in found.notes)
    expect(found, AVERAGED_PARAMETERS)


def test_frozen_parameters_may_be_missing_from_a_list(tmp_path: Path) -> None:
    kept = [name for name in PARAMETERS if name != "conv1.weight"]
    tree = {"model": RAW, "ema": {"shadow_params": [AVERAGE[name] for name in kept]}}
    found = find_stored_average(save(tmp_path / "c.pt", tree))
    assert "conv1.weight" in found.uncovered
    expect(found, {name: AVERAGE[name] for name in kept})


def test_nemos_list_in_the_optimizers_order_is_aligned_by_value(tmp_path: Path) -> None:
    order = list(reversed(PARAMETERS))
    tree = {
        "state_dict": RAW,
        "optimizer_states": [{"opt": OPTIMIZER, "ema": [AVERAGE[name] for name in order], "decay": 0.999}],
        "pytorch-lightning_version": "2.0.0",
    }
    found = find_stored_average(save(tmp_path / "c.ckpt", tree))
    assert any("by shape and value" in note for note in found.notes)
    expect(found, AVERAGED_PARAMETERS)


def test_a_list_that_values_do_not_tell_apart_is_refused(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    model = {f"layer{i}.weight": torch.randn(4, 4, generator=generator) for i in range(3)}
    far = [torch.randn(4, 4, generator=generator) for _ in range(3)]
    tree = {"state_dict": model, "optimizer_states": [{"opt": OPTIMIZER, "ema": far}], "pytorch-lightning_version": "2"}
    with pytest.raises(MismatchError, match=r"values do not tell"):
        find_stored_average(save(tmp_path / "c.ckpt", tree))


def test_a_list_longer_than_the_model_is_refused(tmp_path: Path) -> None:
    tree = {"model": RAW, "ema": {"shadow_params": [*LISTED, torch.zeros(2)]}}
    with pytest.raises(MismatchError, match=r"7 tensors, and the model 6 parameters"):
        find_stored_average(save(tmp_path / "c.pt", tree))


def test_a_list_of_its_own_needs_the_names_of_another_file(tmp_path: Path) -> None:
    path = save(tmp_path / "shadow.pt", {"decay": 0.999, "shadow_params": LISTED})
    with pytest.raises(UnsupportedError, match="no weights next to it") as caught:
        find_stored_average(path)
    assert "names_from" in str(caught.value.hint)
    model = save(tmp_path / "model.pt", RAW)
    found = find_stored_average(path, names_from=model)
    expect(found, AVERAGED_PARAMETERS)
    assert (found.checkpoint.path, found.source.path) == (model, path)


# --- What must be refused ---------------------------------------------------------------------------------------


def test_two_weights_of_one_flattened_name_are_refused(tmp_path: Path) -> None:
    """LitEma registers one buffer for both, and its copy_to writes the wrong tensor into one of them."""
    raw = {"model.a.b1": torch.zeros(2), "model.a.b.1": torch.ones(2), "model.c": torch.ones(3)}
    ema = {"model_ema.decay": torch.tensor(0.9), "model_ema.ab1": torch.zeros(2), "model_ema.c": torch.zeros(3)}
    with pytest.raises(MismatchError, match=r"model\.a\.b1 and model\.a\.b\.1 are both called 'ab1'"):
        find_stored_average(save(tmp_path / "c.ckpt", {"state_dict": {**raw, **ema}}))


def test_two_weights_of_one_underscored_name_are_refused(tmp_path: Path) -> None:
    raw = {"a_b.c": torch.zeros(2), "a.b_c": torch.ones(2), "d.e": torch.ones(3)}
    ema = {"ema_a_b_c": torch.zeros(2), "ema_d_e": torch.zeros(3)}
    with pytest.raises(MismatchError, match="are both called 'a_b_c'"):
        find_stored_average(save(tmp_path / "c.pth", {"state_dict": {**raw, **ema}}))


def test_flat_names_without_trained_weights_need_names(tmp_path: Path) -> None:
    ema = prefixed("model_ema.", flat(prefixed("diffusion_model.", AVERAGED_PARAMETERS)))
    vae = {"first_stage_model.encoder.weight": torch.zeros(3)}
    path = save(tmp_path / "ema-only.ckpt", {"state_dict": {"model_ema.decay": torch.tensor(0.9), **ema, **vae}})
    with pytest.raises(MismatchError, match="no trained weights are here"):
        find_stored_average(path)
    other = save(tmp_path / "sd.ckpt", {"state_dict": {**prefixed("model.diffusion_model.", RAW), **vae}})
    found = find_stored_average(path, names_from=other)
    assert found.renamed
    got = values(found)
    for name, value in AVERAGED_PARAMETERS.items():
        np.testing.assert_array_equal(got[f"model.diffusion_model.{name}"], value.numpy())
    assert "first_stage_model.encoder.weight" in got


def test_another_shape_in_the_average_is_refused(tmp_path: Path) -> None:
    tree = {"model": RAW, "ema": {**AVERAGE, "head.weight": torch.zeros(9, 5)}}
    with pytest.raises(MismatchError, match=r"head\.weight has shape \[7, 5\], and its average .* \[9, 5\]"):
        find_stored_average(save(tmp_path / "c.pt", tree))


def test_two_averages_are_a_question(tmp_path: Path) -> None:
    path = save(tmp_path / "c.pt", {"state_dict": RAW, "model_ema": AVERAGE, "state_dict_ema": near(5)})
    with pytest.raises(UsageError, match="state_dict_ema and model_ema") as caught:
        find_stored_average(path)
    assert "slot='state_dict_ema'" in str(caught.value.hint)
    expect(find_stored_average(path, slot="state_dict_ema"), near(5))


def test_a_checkpoint_without_an_average_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no moving average .* 9 tensors at model: conv1\.weight"):
        find_stored_average(save(tmp_path / "c.pt", {"model": RAW, "epoch": 1}))


@pytest.mark.parametrize("pair", [("to_k", "to_q"), ("linear_m", "linear"), ("w_k", "w_q")])
def test_ordinary_names_are_no_averages(pair: tuple[str, str], tmp_path: Path) -> None:
    state = {f"attention.{name}.weight": torch.ones(4, 4) for name in pair}
    with pytest.raises(NotFoundError):
        find_stored_average(save(tmp_path / "c.pt", state))


def test_codebooks_that_learn_by_moving_averages_are_no_averages_of_weights(tmp_path: Path) -> None:
    state = {
        "quantize.embedding": torch.ones(8, 4),
        "quantize.ema_w": torch.ones(8, 4),
        "quantize._ema_cluster_size": torch.ones(8),
    }
    with pytest.raises(NotFoundError):
        find_stored_average(save(tmp_path / "c.pt", {"model": {**state, **RAW}}))


# --- Coverage ---------------------------------------------------------------------------------------------------


def test_what_the_average_does_not_cover_is_listed_and_keeps_its_value(tmp_path: Path) -> None:
    found = find_stored_average(save(tmp_path / "c.pt", {"model": RAW, "ema": AVERAGED_PARAMETERS}))
    assert found.uncovered == ("bn1.running_mean", "bn1.running_var")
    assert found.statistics == found.uncovered
    assert any("batch-norm statistics" in note and "bn1.running_mean" in note for note in found.notes)
    expect(found, AVERAGED_PARAMETERS)


def test_tied_weights_are_covered_together(tmp_path: Path) -> None:
    """EMA implementations store a tied tensor once; both names get it, and stay tied."""
    tied = {**RAW, "embedding.weight": RAW["head.weight"]}
    found = find_stored_average(save(tmp_path / "c.pt", {"model": tied, "ema": AVERAGE}))
    both = found.weights()
    assert both["embedding.weight"] == both["head.weight"] == found.averaged["head.weight"]
    assert (
        find_stored_average(save(tmp_path / "d.pt", {"model": tied, "ema": {"shadow_params": LISTED}})).weights()[
            "embedding.weight"
        ]
        == find_stored_average(tmp_path / "d.pt").weights()["head.weight"]
    )


# --- Files and folders of their own -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights_name", "average_name"),
    [
        ("m--val_loss=0.5-epoch=3.ckpt", "m--val_loss=0.5-epoch=3-EMA.ckpt"),
        ("model500000.pt", "ema_0.9999_500000.pt"),
        ("model.pt", "model_ema.pt"),
        ("model.pth", "ema_model.pth"),
    ],
)
def test_an_average_in_a_file_of_its_own(weights_name: str, average_name: str, tmp_path: Path) -> None:
    main = save(tmp_path / weights_name, {"state_dict": RAW, "epoch": 1})
    own = save(tmp_path / average_name, AVERAGE)
    found = find_stored_average(main)
    assert (found.source.path, found.checkpoint.path, found.in_place) == (own, main, False)
    expect(found, AVERAGE)
    itself = find_stored_average(own)
    assert itself.in_place
    expect(itself, AVERAGE, AVERAGE)


def test_several_files_of_averages_are_a_question(tmp_path: Path) -> None:
    main = save(tmp_path / "model000100.pt", RAW)
    save(tmp_path / "ema_0.99_000100.pt", near(3))
    save(tmp_path / "ema_0.9999_000100.pt", AVERAGE)
    save(tmp_path / "ema_0.9999_000200.pt", near(4))
    with pytest.raises(UsageError, match="several averages"):
        find_stored_average(main)
    expect(find_stored_average(main, slot="ema_0.9999_000100.pt"), AVERAGE)


def test_an_average_in_a_folder_of_its_own(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    for folder, state in (("unet", RAW), ("unet_ema", AVERAGE)):
        (tmp_path / folder).mkdir()
        save_file(state, tmp_path / folder / "diffusion_pytorch_model.safetensors")
    for name in (tmp_path, tmp_path / "unet"):
        expect(find_stored_average(name), AVERAGE)
    assert find_stored_average(tmp_path / "unet_ema").in_place


# --- The output -------------------------------------------------------------------------------------------------


def apply(path: Path, output: Path, **options: Any) -> Any:
    plan = make_stored_plan(find_stored_average(path), str(output), Policy(**options))
    execute(plan)
    return torch.load(output, weights_only=False)


@pytest.fixture
def timm(tmp_path: Path) -> Path:
    tree = {"state_dict": RAW, "state_dict_ema": AVERAGE, "arch": "net", "epoch": 4, "optimizer": OPTIMIZER}
    return save(tmp_path / "checkpoint-4.pth.tar", tree)


def test_the_output_is_the_container_with_the_average_for_its_weights(timm: Path, tmp_path: Path) -> None:
    got = apply(timm, tmp_path / "out.pth.tar")
    assert set(got) == {"state_dict", "arch", "epoch"}
    assert (got["arch"], got["epoch"]) == ("net", 4)
    assert list(got["state_dict"]) == list(RAW)
    for name, value in got["state_dict"].items():
        wanted = AVERAGE[name] if value.is_floating_point() else RAW[name]
        assert torch.equal(value, wanted)


@pytest.mark.parametrize(
    ("tree", "_where"), [row[1:] for row in NEXT_TO_WEIGHTS], ids=[row[0] for row in NEXT_TO_WEIGHTS]
)
def test_no_trace_of_the_average_is_left_in_the_output(tree: Any, _where: str, tmp_path: Path) -> None:
    """A resume from such a file would take the average for both."""
    path = save(tmp_path / "c.pt", tree)
    apply(path, tmp_path / "out.pt")
    with pytest.raises(NotFoundError):
        find_stored_average(tmp_path / "out.pt")


@pytest.mark.parametrize(("state", "_where", "_average"), [row[1:] for row in INSIDE], ids=[row[0] for row in INSIDE])
def test_no_names_of_the_average_are_left_in_the_output(
    state: State, _where: str, _average: State, tmp_path: Path
) -> None:
    path = save(tmp_path / "c.ckpt", {"state_dict": state, "pytorch-lightning_version": "1.4.2"})
    got = apply(path, tmp_path / "out.ckpt")
    with pytest.raises(NotFoundError):
        find_stored_average(tmp_path / "out.ckpt")
    assert got["pytorch-lightning_version"] == "1.4.2"


@pytest.mark.parametrize(("tree", "_trained"), [row[1:] for row in IN_PLACE], ids=[row[0] for row in IN_PLACE])
def test_an_average_in_place_is_written_without_the_trained_weights(tree: Any, _trained: State, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    path = save(tmp_path / "c.pth", tree)
    plan = make_stored_plan(find_stored_average(path), str(tmp_path / "out.safetensors"))
    execute(plan)
    assert any("nothing is undone" in note for note in plan.notes)
    got = load_file(tmp_path / "out.safetensors")
    assert len(got) == len(SHAPES)
    for name, value in got.items():
        assert torch.equal(value, AVERAGE[name.removeprefix("model.")])
    execute(make_stored_plan(find_stored_average(path), str(tmp_path / "out.pth")))
    text = repr(torch.load(tmp_path / "out.pth", weights_only=False))
    assert not any(
        mark in text for mark in ("ema_state_dict", "current_model_state", "named_parameters", "ema_weight_")
    )


def test_the_average_is_written_in_the_weights_own_type_unless_asked(tmp_path: Path) -> None:
    half = {name: value.bfloat16() if value.is_floating_point() else value for name, value in RAW.items()}
    path = save(tmp_path / "c.pt", {"model": half, "ema": AVERAGE})
    same = apply(path, tmp_path / "same.pt")["model"]
    assert same["head.weight"].dtype == torch.bfloat16
    assert torch.equal(same["head.weight"], AVERAGE["head.weight"].bfloat16())
    kept = apply(path, tmp_path / "kept.pt", dtype="float32")["model"]
    assert torch.equal(kept["head.weight"], AVERAGE["head.weight"])
    plan = make_stored_plan(find_stored_average(path), str(tmp_path / "again.pt"))
    assert any("dtype='float32' keeps it" in note for note in plan.notes)


def test_the_optimizer_of_the_trained_weights_is_never_kept(timm: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="belongs to the trained weights"):
        make_stored_plan(find_stored_average(timm), str(tmp_path / "out.pt"), policy=Policy(keep_state=True))


# --- Pickled modules, and what ckpttool.training stores ----------------------------------------------------------


class Net(torch.nn.Module):
    """A module that is pickled whole."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 2, 3)
        self.bn = torch.nn.BatchNorm2d(2)
        self.blocks = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1, bias=False))
        self.register_buffer("table", torch.arange(3.0), persistent=False)


def test_pickled_modules_are_read_without_their_code(tmp_path: Path) -> None:
    module = Net().half()
    training = {"model": None, "ema": module, "updates": 100, "optimizer": OPTIMIZER, "train_args": {}, "epoch": 3}
    stripped = {"model": module, "ema": None, "updates": None, "optimizer": None, "epoch": -1}
    wanted = module.state_dict()
    for name, tree in (("training.pt", training), ("stripped.pt", stripped)):
        path = save(tmp_path / name, tree)
        found = find_stored_average(path)
        assert found.in_place
        got = apply(path, tmp_path / f"out-{name}")
        assert list(got) == list(wanted)
        assert all(torch.equal(got[key], value) for key, value in wanted.items())


def test_the_training_module_stores_what_is_found(tmp_path: Path) -> None:
    from ckpttool.training import MovingAverage

    model = Net()
    average = MovingAverage(model, decay=0.9)
    for step in range(1, 4):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update(step)
    tree = {"model": model.state_dict(), "my_average": average.state_dict(), "step": 3}
    got = apply(save(tmp_path / "c.pt", tree), tmp_path / "out.pt")
    assert set(got) == {"model", "step"}
    with average.shadow_weights():
        wanted = {name: value.clone() for name, value in model.state_dict().items()}
    assert all(torch.equal(got["model"][name], value) for name, value in wanted.items())


def test_a_list_in_another_file_takes_the_names_of_the_weights(tmp_path: Path) -> None:
    """SimpleTuner's: safetensors keeps no order, so that only values tell."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(1)
    model = {f"block{i}.weight": torch.randn(4, 4, generator=generator) for i in range(9)}
    listed = [value + 0.02 * torch.randn(4, 4, generator=generator) for value in model.values()]
    save_file(model, tmp_path / "model.safetensors")
    save_file({f"shadow_params.{i}": value for i, value in enumerate(listed)}, tmp_path / "ema_model.safetensors")
    found = find_stored_average(tmp_path / "model.safetensors")
    got = values(found)
    for name, value in zip(model, listed, strict=True):
        np.testing.assert_array_equal(got[name], value.numpy())
    assert any("times nearer" in note for note in found.notes)


def test_runs_next_to_each_other_are_not_averages_of_each_other(tmp_path: Path) -> None:
    for run in ("exp1", "exp1_ema"):
        (tmp_path / run / "checkpoint-100").mkdir(parents=True)
    assert folder_average(tmp_path) is None


# --- Malicious files ----------------------------------------------------------------------------------------------


def test_a_module_that_holds_itself_is_refused_in_time(tmp_path: Path) -> None:
    module = torch.nn.Module()
    module._modules["a"] = module
    module._modules["b"] = module
    with pytest.raises(UnreadableError, match="nest without end"):
        find_stored_average(save(tmp_path / "c.pt", {"ema": module, "model": None}))


def test_containers_that_unfold_without_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "MAX_NODES", 10_000)
    node: Any = {"x": torch.zeros(2)}
    for _ in range(28):
        node = {"a": node, "b": node}
    with pytest.raises((UnreadableError, NotFoundError)):
        find_stored_average(save(tmp_path / "c.pt", {"model": RAW, "ema": node}))


@pytest.mark.parametrize(
    "ema",
    [7, "ema", [], {}, {"module": 3}, {"shadow_params": "none"}, {"shadow_params": []}, {"params": None}, [1, 2, 3]],
)
def test_what_is_only_called_an_average_is_none(ema: Any, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        find_stored_average(save(tmp_path / "c.pt", {"model": RAW, "ema": ema}))


def test_an_integer_in_the_place_of_an_average_is_refused(tmp_path: Path) -> None:
    tree = {"model": RAW, "ema": {**AVERAGE, "head.weight": torch.zeros(7, 5, dtype=torch.int64)}}
    with pytest.raises(MismatchError, match=r"head\.weight is float32, and its average int64"):
        find_stored_average(save(tmp_path / "c.pt", tree))


# --- The table --------------------------------------------------------------------------------------------------


def test_every_key_of_the_table_says_that_a_set_of_tensors_is_an_average() -> None:
    """So that what is searched for an average is not taken for the weights when a file is opened."""
    keys = [[key for key in slot.path if isinstance(key, str)] for slot in SLOTS]
    keys += [[key] for key, _ in LISTS] + [[prefix] for prefix in (*PREFIXES, *FLATTENED_LISTS)]
    assert [path for path in keys if not any(COPY_KEYS.search(key) for key in path)] == []


@pytest.mark.parametrize("slot", [slot for slot in SLOTS if "*" not in slot.path], ids=lambda slot: slot.framework)
def test_every_slot_of_the_table_is_found_with_its_kind(slot: Slot, tmp_path: Path) -> None:
    tree: dict[str, Any] = dict.fromkeys(slot.when or ("model",), RAW)
    node = tree
    for key in slot.path[:-1]:
        node = node.setdefault(str(key), {})
    node[str(slot.path[-1])] = AVERAGE
    found = find_stored_average(save(tmp_path / "c.pt", tree))
    assert (found.where, found.kind, found.in_place) == (".".join(map(str, slot.path)), slot.kind, False)
    expect(found, AVERAGE)


def test_a_directory_is_listed_once_to_find_what_is_next_to_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "last.ckpt", {"state_dict": RAW})
    save(tmp_path / "last-EMA.ckpt", {"state_dict": AVERAGE})
    listed: list[Path] = []
    plain = LocalStorage.list
    monkeypatch.setattr(LocalStorage, "list", lambda self, path: listed.append(path) or plain(self, path))
    found = find_stored_average(tmp_path / "last.ckpt", snapshot=Snapshot())
    assert found.framework == "NeMo"
    assert listed.count(tmp_path) == 1
