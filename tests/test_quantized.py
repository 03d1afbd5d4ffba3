"""Weights that are stored as codes with scales: never averaged apart, refused where they differ."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import Ran
from safetensors.torch import load_file, save_file

import ckpttool as ct
from ckpttool.errors import MismatchError
from ckpttool.planning.quantized import PROBED_BYTES, SIGNATURES

Run = Callable[..., Ran]
Tensors = dict[str, torch.Tensor]


def integers(seed: int, *shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    high = 100 if dtype in {torch.int8, torch.uint8} else 1 << 20
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def floats(seed: int, *shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) + 0.5).to(dtype)


def gptq(codes: int, scales: int) -> Tensors:
    return {
        "m.qweight": integers(codes, 2, 8),
        "m.qzeros": integers(scales, 1, 1),
        "m.scales": floats(scales, 1, 8),
        "m.g_idx": torch.zeros(16, dtype=torch.int32),
    }


def awq(codes: int, scales: int) -> Tensors:
    return {
        "m.qweight": integers(codes, 16, 1),
        "m.qzeros": integers(scales, 1, 1),
        "m.scales": floats(scales, 1, 8),
    }


def bitsandbytes_8(codes: int, scales: int) -> Tensors:
    return {
        "m.weight": integers(codes, 8, 16, dtype=torch.int8),
        "m.SCB": floats(scales, 8, dtype=torch.float32),
        "m.weight_format": torch.tensor(0, dtype=torch.uint8),
    }


def bitsandbytes_4(codes: int, scales: int) -> Tensors:
    state = json.dumps({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [8, 16]})
    return {
        "m.weight": integers(codes, 64, 1, dtype=torch.uint8),
        "m.weight.absmax": integers(scales, 2, dtype=torch.uint8),
        "m.weight.nested_absmax": floats(scales, 1, dtype=torch.float32),
        "m.weight.nested_quant_map": floats(0, 256, dtype=torch.float32),
        "m.weight.quant_map": floats(0, 16, dtype=torch.float32),
        "m.weight.quant_state.bitsandbytes__nf4": torch.tensor(list(state.encode()), dtype=torch.uint8),
    }


def bitsandbytes_4_in_bfloat16(codes: int, scales: int) -> Tensors:
    """``bnb_4bit_quant_storage="bfloat16"``, as FSDP with QLoRA needs it: bytes that are not numbers."""
    tensors = bitsandbytes_4(codes, scales)
    return {**tensors, "m.weight": integers(codes, 64, dtype=torch.uint8).view(torch.bfloat16).reshape(32, 1)}


def mxfp4(codes: int, scales: int) -> Tensors:
    return {
        "experts.gate_up_proj_blocks": integers(codes, 2, 4, 1, 16, dtype=torch.uint8),
        "experts.gate_up_proj_scales": integers(scales, 2, 4, 1, dtype=torch.uint8),
    }


def mxfp4_of_openai(codes: int, scales: int) -> Tensors:
    return {
        "mlp.mlp1_weight.blocks": integers(codes, 2, 4, 1, 16, dtype=torch.uint8),
        "mlp.mlp1_weight.scales": integers(scales, 2, 4, 1, dtype=torch.uint8),
    }


def pack_quantized(codes: int, scales: int) -> Tensors:
    return {
        "m.weight_packed": integers(codes, 8, 2),
        "m.weight_scale": floats(scales, 8, 1, dtype=torch.bfloat16),
        "m.weight_shape": torch.tensor([8, 16]),
    }


def int_quantized(codes: int, scales: int) -> Tensors:
    return {
        "m.weight": integers(codes, 8, 16, dtype=torch.int8),
        "m.weight_scale": floats(scales, 8, 1, dtype=torch.bfloat16),
    }


def quanto(codes: int, scales: int) -> Tensors:
    return {
        "m.weight._data": integers(codes, 8, 16, dtype=torch.int8),
        "m.weight._scale": floats(scales, 8, 1),
    }


QUANTIZERS = [
    gptq,
    awq,
    bitsandbytes_8,
    bitsandbytes_4,
    bitsandbytes_4_in_bfloat16,
    mxfp4,
    mxfp4_of_openai,
    pack_quantized,
    int_quantized,
    quanto,
]


def save_run(directory: Path, members: list[Tensors], config: object = None) -> Path:
    for step, tensors in enumerate(members, start=1):
        folder = directory / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        save_file({**tensors, "norm.weight": torch.full((4,), float(step))}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config or {}))
    return directory


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_codes_that_differ_are_refused_with_what_to_do(
    quantizer: Callable[[int, int], Tensors], tmp_path: Path, run: Run
) -> None:
    directory = save_run(tmp_path, [quantizer(1, 7), quantizer(2, 7)])
    ran = run("average", directory, "--last", 2)
    assert ran.exit_code == 4
    name = next(name for name in quantizer(1, 7) if "weight" in name or "blocks" in name)
    assert f"Error: {name} (" in ran.stderr
    assert "is not the same in" in ran.stderr
    assert "average the checkpoints from before the quantization" in ran.stderr
    assert not (directory / "avg").exists()


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_scales_that_differ_are_refused_in_the_plan_already(
    quantizer: Callable[[int, int], Tensors], tmp_path: Path, run: Run
) -> None:
    directory = save_run(tmp_path, [quantizer(1, 7), quantizer(1, 8)])
    dry, wet = run("average", directory, "--last", 2, "--dry-run"), run("average", directory, "--last", 2)
    assert (dry.exit_code, wet.exit_code) == (4, 4)
    assert "is not the same in" in dry.stderr
    assert dry.stderr.splitlines()[-2:] == wet.stderr.splitlines()[-2:]


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_equal_codes_with_equal_scales_pass_whatever_the_dtype_of_the_average(
    quantizer: Callable[[int, int], Tensors], tmp_path: Path
) -> None:
    directory = save_run(tmp_path, [quantizer(1, 7)] * 3)
    ct.average(directory, tmp_path / "out", last=3, dtype="float64")
    written = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in quantizer(1, 7).items():
        assert written[name].dtype == tensor.dtype, name
        assert torch.equal(written[name].view(torch.uint8), tensor.view(torch.uint8)), name
    assert torch.equal(written["norm.weight"], torch.full((4,), 2.0, dtype=torch.float64))
    plan = ct.average(directory, tmp_path / "out2", last=3, dry_run=True)
    assert any("packed by" in warning for warning in plan.warnings)


def test_one_checkpoint_and_one_hot_weights_need_no_comparison(tmp_path: Path) -> None:
    directory = save_run(tmp_path, [gptq(1, 2), gptq(3, 4)])
    ct.average(directory, tmp_path / "one", last=1)
    paths = [directory / f"checkpoint-{step}" for step in (1, 2)]
    ct.average(paths, tmp_path / "hot", weights=[1, 0])
    written = load_file(tmp_path / "hot" / "model.safetensors")
    assert all(torch.equal(written[name], tensor) for name, tensor in gptq(1, 2).items())


def float8(value: float, scale: float, ending: str) -> Tensors:
    return {
        "m.weight": torch.full((4, 4), value).to(torch.float8_e4m3fn),
        f"m.{ending}": torch.tensor([[scale]]),
    }


@pytest.mark.parametrize("ending", ["weight_scale_inv", "weight_scale"])
def test_float8_with_equal_scales_is_averaged_without_a_warning(ending: str, tmp_path: Path) -> None:
    directory = save_run(tmp_path, [float8(1, 0.5, ending), float8(3, 0.5, ending)])
    plan = ct.average(directory, tmp_path / "out", last=2, dry_run=True)
    assert plan.warnings == ()
    ct.average(directory, tmp_path / "out", last=2, dtype="float32")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written["m.weight"].dtype == torch.float8_e4m3fn  # the scale is for codes
    assert torch.equal(written["m.weight"].float(), torch.full((4, 4), 2.0))
    assert torch.equal(written[f"m.{ending}"], torch.tensor([[0.5]]))


@pytest.mark.parametrize("ending", ["weight_scale_inv", "weight_scale"])
def test_float8_with_other_scales_is_refused(ending: str, tmp_path: Path) -> None:
    directory = save_run(tmp_path, [float8(1, 0.5, ending), float8(3, 0.25, ending)])
    with pytest.raises(MismatchError, match=f"m.{ending} .* is not the same in"):
        ct.average(directory, tmp_path / "out", last=2, dry_run=True)


@pytest.mark.parametrize("keys", ["strict", "intersection", "newest"])
@pytest.mark.parametrize("order", [1, -1])
def test_quantised_and_other_float8_checkpoints_are_not_mixed(keys: str, order: int, tmp_path: Path) -> None:
    plain = {"m.weight": torch.ones(4, 4).to(torch.float8_e4m3fn)}
    directory = save_run(tmp_path, [float8(1, 0.5, "weight_scale"), plain][::order])
    with pytest.raises(MismatchError, match="weight_scale"):
        ct.average(directory, tmp_path / "out", last=2, keys=keys)


def test_a_quantizer_that_the_table_does_not_know_is_known_by_the_configuration(tmp_path: Path) -> None:
    def tensors(codes: int) -> Tensors:
        return {"m.kernel_q": integers(codes, 4, 4, dtype=torch.uint8), "m.kernel_zero": floats(1, 4)}

    config = {"quantization_config": {"quant_method": "newest-fad"}}
    directory = save_run(tmp_path / "a", [tensors(1), tensors(2)], config)
    with pytest.raises(MismatchError, match="packed by newest-fad"):
        ct.average(directory, tmp_path / "out", last=2)
    # Without it, integers are what they are: the newest's.
    ct.average(save_run(tmp_path / "b", [tensors(1), tensors(2)]), tmp_path / "out", last=2)


def test_what_is_not_probed_in_the_plan_is_compared_in_the_run(tmp_path: Path) -> None:
    many = PROBED_BYTES // 8 + 8

    def tensors(scale: float) -> Tensors:
        return {
            "m.qweight": integers(1, 2, 8),
            "m.scales": torch.full((many,), scale, dtype=torch.float32),
        }

    directory = save_run(tmp_path, [tensors(1.0), tensors(2.0)])
    ct.average(directory, tmp_path / "out", last=2, dry_run=True)
    with pytest.raises(MismatchError, match=r"m\.scales"):
        ct.average(directory, tmp_path / "out", last=2)


def test_ordinary_names_like_those_of_quantizers_are_ordinary(tmp_path: Path) -> None:
    """An integer index next to a float weight, a norm with a scale: averaged as ever."""
    members = [
        {"norm.weight": floats(seed, 4), "norm.scale": floats(seed, 4), "m.weight": floats(seed, 4, 4)}
        for seed in (1, 2)
    ]
    for step, tensors in enumerate(members, start=1):
        save_file(tensors, tmp_path / f"model_{step}.safetensors")
    ct.average(tmp_path, tmp_path / "out.safetensors", last=2, dtype="float64")
    written = load_file(tmp_path / "out.safetensors")
    for name in members[0]:
        assert torch.equal(written[name], (members[0][name].double() + members[1][name].double()) / 2), name


def test_each_row_of_the_table_is_distinct() -> None:
    keys = [(row.codes, row.required) for row in SIGNATURES]
    assert len(set(keys)) == len(keys)
