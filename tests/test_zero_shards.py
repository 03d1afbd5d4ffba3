"""DeepSpeed's ZeRO: the masters of the optimizer, averaged from its ranks' files as they are."""

import gc
import json
import os
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from zero_writer import save_zero

from ckpttool.engine.run import execute, expected_memory
from ckpttool.engine.work import CHUNK_ELEMENTS
from ckpttool.errors import OutputExistsError, UnreadableError, UnsupportedError, UsageError
from ckpttool.formats import open_checkpoint
from ckpttool.formats.directories.zero_files import read_partitions
from ckpttool.planning.matching import ties
from ckpttool.planning.planner import make_plan
from ckpttool.planning.request import Policy
from ckpttool.selection.discovery import discover, from_paths

SHAPES = {"a.weight": (3, 5), "a.bias": (3,), "b.weight": (2, 3, 4), "scale": (), "empty": (0, 3), "c": (7, 1)}


def tensors(seed, shapes=None):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in (shapes or SHAPES).items()}


def grouped(weights, groups=2):
    """Parameters dealt out to groups, as weight decay does: not in the model's order."""
    return [{name: weights[name] for name in list(weights)[index::groups]} for index in range(groups)]


def mean(*members):
    """The exact mean, rounded once to float32."""

    def one(values):
        return np.float32(float(sum(map(Fraction, values)) / len(values)))

    return {
        name: torch.tensor(
            [one(values) for values in zip(*(member[name].flatten().tolist() for member in members), strict=True)]
        ).reshape(tensor.shape)
        for name, tensor in members[0].items()
    }


def average(paths, output, section=None, **more):
    found = discover(paths) if not isinstance(paths, list) else from_paths(paths, section=section)
    plan = make_plan(found, output, policy=Policy(**more))
    execute(plan)
    return plan


def same(found, wanted):
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert torch.equal(found[name], tensor), name


# --- What is averaged ------------------------------------------------------------------------------------------

sizes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
layouts = st.fixed_dictionaries(
    {
        "stage": st.sampled_from([1, 2, 3]),
        "ranks": st.integers(1, 5),
        "pieces": st.integers(1, 3),
        "alignment": st.sampled_from([1, 4, 8]),
        "keeps_padding": st.booleans(),
        "prefix": st.sampled_from(["", "bf16_"]),
    }
)


@given(st.lists(sizes, min_size=1, max_size=7), st.integers(1, 3), st.lists(layouts, min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_the_average_is_the_exact_mean_whatever_the_stages_and_ranks(tmp_path_factory, shapes, groups, members):
    folder = tmp_path_factory.mktemp("zero")
    named = {f"layer.{index}": shape for index, shape in enumerate(shapes)}
    weights = [tensors(seed, named) for seed in range(len(members))]
    for step, (layout, own) in enumerate(zip(members, weights, strict=True)):
        save_zero(folder / f"global_step{step}", grouped(own, min(groups, len(own))), step=step, **layout)
    paths = [folder / f"global_step{step}" for step in range(len(members))]
    average(paths, folder / "x.pt", "fp32")
    same(torch.load(folder / "x.pt"), mean(*weights))


@pytest.mark.parametrize("stage", [2, 3])
def test_rank_10_comes_after_rank_9(tmp_path, stage):
    weights = {"w": torch.arange(100.0).reshape(10, 10)}
    save_zero(tmp_path / "run", [weights], ranks=12, stage=stage)
    average([tmp_path / "run"], tmp_path / "x.pt", "fp32")
    same(torch.load(tmp_path / "x.pt"), weights)


def test_a_run_of_zero_3_is_averaged_as_it_is(tmp_path, run):
    weights = {step: tensors(step) for step in (80, 90, 100)}
    for step, own in weights.items():
        save_zero(tmp_path / f"global_step{step}", grouped(own), step=step)
    (tmp_path / "latest").write_text("global_step100")
    ran = run("average", tmp_path, "--last", 2, "-o", tmp_path / "x.safetensors")
    assert ran.exit_code == 0, ran.stderr
    assert "float32 masters in the files of the optimizer (DeepSpeed ZeRO-3)" in ran.stderr
    same(load_file(tmp_path / "x.safetensors"), mean(weights[90], weights[100]))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_everything_of_a_model_is_there_once_in_its_order(tmp_path, stage):
    weights = tensors(0)
    frozen = {"frozen": torch.randn(5, 3).bfloat16(), "odd": torch.ones(1, dtype=torch.bfloat16)}
    buffers = {"mean": torch.randn(4), "count": torch.tensor(3)}
    shared = {"head.weight": "a.weight"}
    save_zero(
        tmp_path / "global_step10",
        grouped(weights),
        stage=stage,
        ranks=3,
        frozen=frozen,
        buffers=buffers,
        shared=shared,
    )
    checkpoint = open_checkpoint(tmp_path / "global_step10", section="fp32")
    assert list(checkpoint.weights) == [*buffers, *weights_in_saved_order(weights), *frozen, *shared]
    assert checkpoint.step == 10
    assert ties(checkpoint.tensors()) == {("", "head.weight"): ("", "a.weight")}
    average([tmp_path / "global_step10"], tmp_path / "x.pt", "fp32")
    found = torch.load(tmp_path / "x.pt")
    assert found["head.weight"].data_ptr() == found["a.weight"].data_ptr()
    same(found, {**weights, **frozen, **buffers, "head.weight": weights["a.weight"]})
    average([tmp_path / "global_step10"], tmp_path / "half.pt", "fp32", dtype="bfloat16")
    assert torch.equal(torch.load(tmp_path / "half.pt")["a.weight"], weights["a.weight"].bfloat16())


def weights_in_saved_order(weights):
    return [name for group in grouped(weights) for name in group]


def test_a_name_that_zero_2_shares_without_saying_so_gets_the_master(tmp_path):
    """DeepSpeed before 0.9 does not list shared parameters; the model's file ties them all the same."""
    weights = tensors(0)
    save_zero(tmp_path, grouped(weights), stage=2, shared={"head": "c"}, model={"shared_params": None})
    average([tmp_path], tmp_path.with_suffix(".pt"), "fp32")
    assert torch.equal(torch.load(tmp_path.with_suffix(".pt"))["head"], weights["c"])


def test_frozen_parameters_that_were_not_saved_are_no_error(tmp_path):
    weights = tensors(0)
    more = {"frozen_param_shapes": None, "frozen_param_fragments": None, "shared_params": {"tied": "frozen"}}
    save_zero(tmp_path / "run", grouped(weights), model=more)
    assert set(open_checkpoint(tmp_path / "run").weights) == set(weights)


def test_zero_2_averages_what_it_trains_with_unless_the_masters_are_asked_for(tmp_path, run):
    weights = {step: tensors(step) for step in (90, 100)}
    for step, own in weights.items():
        save_zero(tmp_path / f"global_step{step}", grouped(own), step=step, stage=2)
    ran = run("average", tmp_path, "--last", 2)
    assert ran.exit_code == 0, ran.stderr
    assert "--section fp32" in ran.stderr
    halves = torch.load(tmp_path / "avg-last-2" / "global_step100" / "mp_rank_00_model_states.pt", weights_only=False)
    assert all(tensor.dtype == torch.bfloat16 for tensor in halves["module"].values())
    ran = run("average", tmp_path, "--last", 2, "--section", "fp32", "-o", tmp_path / "x.pt")
    assert ran.exit_code == 0, ran.stderr
    same(torch.load(tmp_path / "x.pt"), mean(*weights.values()))


def test_the_memory_that_a_plan_states_counts_the_slices(tmp_path):
    weights = {f"layer.{index}": torch.randn(24, 2) for index in range(50)}
    for step in (1, 2):
        save_zero(tmp_path / f"global_step{step}", [weights], ranks=12, step=step)
    average(tmp_path, tmp_path / "first.pt")  # what is imported and kept for good
    gc.collect()
    tracemalloc.start()
    plan = make_plan(discover(tmp_path), tmp_path / "x.pt")
    execute(plan, jobs=1)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    stated = expected_memory([plan], 1) - expected_memory([], 1)
    assert stated > 600 * 50 * 12 * 2
    assert taken < stated + 32 * CHUNK_ELEMENTS


# --- What is written -------------------------------------------------------------------------------------------


def save_trainer(folder, step, *, stage=3, weights=None, **more):
    """A directory of Hugging Face's Trainer."""
    folder.mkdir(parents=True)
    save_zero(folder / f"global_step{step}", grouped(tensors(step)), step=step, stage=stage, **more)
    (folder / "latest").write_text(f"global_step{step}")
    (folder / "config.json").write_text('{"model_type": "x", "dtype": "bfloat16"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "best_metric": 0.5}))
    (folder / "training_args.bin").write_bytes(b"args")
    (folder / "zero_to_torch.py").write_text("# DeepSpeed's")
    if weights is not None:
        save_file(weights, folder / "model.safetensors", {"format": "pt"})


def test_without_a_name_a_run_gets_what_zero_to_fp32_writes(tmp_path, run):
    for step in (90, 100):
        save_zero(tmp_path / f"global_step{step}", grouped(tensors(step)), step=step, shared={"tied": "c"})
    for force in ((), ("--force",)):
        ran = run("average", tmp_path, "--last", 2, *force)
        assert ran.exit_code == 0, ran.stderr
    output = tmp_path / "avg-last-2" / "global_step100"
    assert [path.name for path in output.iterdir()] == ["pytorch_model.bin"]
    wanted = mean(tensors(90), tensors(100))
    same(torch.load(output / "pytorch_model.bin"), {**wanted, "tied": wanted["c"]})


def test_a_directory_of_the_trainer_becomes_one_that_transformers_loads(tmp_path, run):
    for step in (90, 100):
        save_trainer(tmp_path / f"checkpoint-{step}", step, ranks=step // 30)
    ran = run("average", tmp_path, "--last", 2)
    assert ran.exit_code == 0, ran.stderr
    assert "config.json states bfloat16" in ran.stderr
    output = tmp_path / "avg-last-2" / "checkpoint-100"
    assert {path.name for path in output.iterdir()} == {"model.safetensors", "config.json", "tokenizer.json"}
    same(load_file(output / "model.safetensors"), mean(tensors(90), tensors(100)))
    ran = run("average", tmp_path, "--last", 2, "--max-shard-size", 60, "-o", tmp_path / "cut", "--dtype", "bfloat16")
    assert ran.exit_code == 0, ran.stderr
    index = json.loads((tmp_path / "cut" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(SHAPES)
    assert len(set(index["weight_map"].values())) > 1


def test_weights_next_to_the_partitions_are_taken_unless_the_masters_are_asked_for(tmp_path, run):
    halves = {name: tensor.bfloat16() for name, tensor in tensors(0).items()}
    for step in (90, 100):
        save_trainer(tmp_path / f"checkpoint-{step}", step, weights=halves)
    plan = average(tmp_path, tmp_path / "half.safetensors")
    assert any("section='fp32'" in note for note in plan.notes)
    same(load_file(tmp_path / "half.safetensors"), halves)
    ran = run("average", tmp_path, "--last", 2, "--section", "fp32")
    assert ran.exit_code == 0, ran.stderr
    output = tmp_path / "avg-last-2" / "checkpoint-100"
    assert {path.name for path in output.iterdir()} == {"model.safetensors", "config.json", "tokenizer.json"}
    same(load_file(output / "model.safetensors"), mean(tensors(90), tensors(100)))


def test_masters_that_are_not_there_are_not_replaced_by_what_is(tmp_path):
    save_trainer(tmp_path / "checkpoint-100", 100, weights=tensors(0))
    for place in (tmp_path / "checkpoint-100" / "global_step100").iterdir():
        place.unlink()
    with pytest.raises(UsageError, match="no float32 masters"):
        open_checkpoint(tmp_path / "checkpoint-100", section="fp32")
    assert open_checkpoint(tmp_path / "checkpoint-100").format == "huggingface"


def test_latest_says_which_of_several_is_meant(tmp_path):
    save_trainer(tmp_path / "checkpoint-100", 100)
    save_zero(tmp_path / "checkpoint-100" / "global_step90", grouped(tensors(90)), step=90)
    assert open_checkpoint(tmp_path / "checkpoint-100").files[0].parent.name == "global_step100"
    for said in ("global_step80", "../global_step90"):
        (tmp_path / "checkpoint-100" / "latest").write_text(said)
        with pytest.raises(UsageError, match="2 checkpoints in it"):
            open_checkpoint(tmp_path / "checkpoint-100")


@pytest.mark.parametrize("stage", [2, 3])
def test_a_directory_of_the_trainer_without_whole_weights_is_read_from_its_partitions(tmp_path, stage):
    save_trainer(tmp_path / "checkpoint-100", 100, stage=stage)
    checkpoint = open_checkpoint(tmp_path / "checkpoint-100")
    assert (checkpoint.format, checkpoint.step, checkpoint.values["best_metric"]) == ("zero", 100, 0.5)
    average([tmp_path / "checkpoint-100"], tmp_path / "x.safetensors")
    same(load_file(tmp_path / "x.safetensors"), tensors(100))


def test_lightning_keeps_the_files_in_a_folder(tmp_path):
    for step in (90, 100):
        save_zero(tmp_path / f"epoch=0-step={step}.ckpt" / "checkpoint", grouped(tensors(step)), step=step)
        (tmp_path / f"epoch=0-step={step}.ckpt" / "latest").write_text("checkpoint")
    average(tmp_path, tmp_path / "x.pt")
    same(torch.load(tmp_path / "x.pt"), mean(tensors(90), tensors(100)))


def test_a_frozen_weight_in_another_order_of_dimensions_is_written_too(tmp_path):
    frozen = {"conv": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)}
    save_trainer(tmp_path / "checkpoint-100", 100, stage=2, frozen=frozen)
    average([tmp_path / "checkpoint-100"], tmp_path / "out")
    assert torch.equal(torch.load(tmp_path / "out" / "pytorch_model.bin")["conv"], frozen["conv"])


def test_training_state_cannot_be_kept(tmp_path):
    save_trainer(tmp_path / "checkpoint-100", 100)
    with pytest.raises(UsageError, match="weights from before averaging"):
        average([tmp_path / "checkpoint-100"], tmp_path / "out", keep_state=True)


def test_an_output_is_not_written_into_an_input(tmp_path):
    save_zero(tmp_path / "global_step10", grouped(tensors(0)))
    with pytest.raises(OutputExistsError):
        average([tmp_path / "global_step10"], tmp_path / "global_step10", force=True)


# --- What is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_file_that_is_missing_is_named(tmp_path, stage, rank):
    save_zero(tmp_path, grouped(tensors(0)), ranks=3, stage=stage)
    name = f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
    (tmp_path / name).unlink()
    with pytest.raises(UnreadableError, match=f"{name} is missing"):
        open_checkpoint(tmp_path, section="fp32")


def test_a_half_written_checkpoint_of_a_run_can_be_left_out(tmp_path, run):
    for step in (80, 90, 100):
        save_zero(tmp_path / f"global_step{step}", grouped(tensors(step)), step=step)
    (tmp_path / "global_step100" / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    ran = run("average", tmp_path, "--last", 2, "-o", tmp_path / "x.pt")
    assert ran.exit_code == 6
    assert "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt is missing" in ran.stderr
    ran = run("average", tmp_path, "--last", 2, "-o", tmp_path / "x.pt", "--exclude", "global_step100")
    assert ran.exit_code == 0, ran.stderr
    same(torch.load(tmp_path / "x.pt"), mean(tensors(80), tensors(90)))


def optimizer_file(folder, rank=0):
    return folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"


def model_file(folder, rank=0):
    return folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt"


def changed(place, change):
    content = torch.load(place, weights_only=False)
    change(content)
    torch.save(content, place)


DAMAGE = {
    "no file of the optimizer": (lambda d: [optimizer_file(d, rank).unlink() for rank in (0, 1)], "are missing"),
    "no file of the model": (lambda d: model_file(d).unlink(), "zero_pp_rank_0_mp_rank_00_model_states.pt is missing"),
    "a slice of what is frozen": (lambda d: model_file(d, 1).unlink(), "zero_pp_rank_1_mp_rank_00_model_states.pt is"),
    "cut short": (lambda d: optimizer_file(d).write_bytes(optimizer_file(d).read_bytes()[:900]), "optim_states.pt"),
    "a rank too many": (lambda d: optimizer_file(d, 2).write_bytes(optimizer_file(d).read_bytes()), "one too many"),
    "two of a rank": (
        lambda d: (d / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"x"),
        "two files of rank 0",
    ),
    "another step": (
        lambda d: changed(model_file(d, 1), lambda c: c.update(global_steps=9)),
        "different steps",
    ),
    "another shape": (
        lambda d: changed(model_file(d), lambda c: c["param_shapes"][0].update({"a.weight": torch.Size((3, 6))})),
        "partitions have .* elements, and the parameters need",
    ),
    "one name more": (
        lambda d: changed(model_file(d), lambda c: c["param_shapes"][1].update({"more": torch.Size((3,))})),
        "partitions have .* elements, and the parameters need",
    ),
    "one name fewer": (
        lambda d: changed(model_file(d), lambda c: c["param_shapes"][0].pop("a.weight")),
        "partitions have .* elements, and the parameters need",
    ),
    "a name in two groups": (
        lambda d: changed(model_file(d), lambda c: c["param_shapes"][1].update({"a.weight": torch.Size((3, 5))})),
        "a.weight is in two groups",
    ),
    "another stage": (
        lambda d: changed(optimizer_file(d, 1), lambda c: c["optimizer_state_dict"].update(zero_stage=2)),
        "optim_states.pt",
    ),
    "swapped out": (
        lambda d: [
            changed(optimizer_file(d, rank), lambda c: c["optimizer_state_dict"].update(fp32_flat_groups=[]))
            for rank in (0, 1)
        ],
        "have 0 elements, and the parameters need 50",
    ),
    "no flat tensor": (
        lambda d: changed(
            optimizer_file(d), lambda c: c["optimizer_state_dict"].update(fp32_flat_groups=[torch.ones(2, 2)])
        ),
        "should be flat",
    ),
    "no tensor": (
        lambda d: changed(optimizer_file(d), lambda c: c["optimizer_state_dict"].update(fp32_flat_groups=["x"])),
        "is not a tensor",
    ),
    "no list": (
        lambda d: changed(optimizer_file(d), lambda c: c["optimizer_state_dict"].update(fp32_flat_groups=3)),
        "is not a list",
    ),
    "no shapes": (lambda d: changed(model_file(d), lambda c: c.pop("param_shapes")), "param_shapes is missing"),
    "impossible shapes": (
        lambda d: changed(model_file(d), lambda c: c["param_shapes"][0].update({"a.weight": (-1, 2)})),
        "a.weight has no shape",
    ),
    "no count": (
        lambda d: changed(optimizer_file(d), lambda c: c["optimizer_state_dict"].pop("partition_count")),
        "partition_count",
    ),
    "an absurd count": (
        lambda d: changed(optimizer_file(d), lambda c: c["optimizer_state_dict"].update(partition_count=10**12)),
        "zero_pp_rank_2_mp_rank_00_optim_states.pt is missing, and those of 999999999997 more",
    ),
    "a count that is none": (
        lambda d: changed(optimizer_file(d), lambda c: c["optimizer_state_dict"].update(partition_count={"x": 2})),
        "partition_count",
    ),
    "counts that are none": (
        lambda d: changed(optimizer_file(d), lambda c: c["optimizer_state_dict"].update(partition_count=[2, []])),
        "partition_count",
    ),
    "more dimensions than there are": (
        lambda d: changed(
            model_file(d), lambda c: c["param_shapes"][0].update({"a.weight": torch.Size([1] * 2000 + [15])})
        ),
        "a.weight has no shape",
    ),
    "slices of two types": (
        lambda d: changed(model_file(d, 1), lambda c: c["frozen_param_fragments"].update(frozen=torch.ones(3).half())),
        "frozen: its slice is float16, and float32 in zero_pp_rank_0",
    ),
    "no name at all": (
        lambda d: changed(model_file(d), lambda c: c.update(param_shapes=[])),
        "partitions have 27 elements, and the parameters need 0",
    ),
    "not of ZeRO": (
        lambda d: changed(optimizer_file(d), lambda c: c["optimizer_state_dict"].pop("zero_stage")),
        "does not say that it is of ZeRO",
    ),
    "experts": (
        lambda d: (d / "layer_0_expert_1_mp_rank_00_model_states.pt").write_bytes(b"x"),
        "a mixture of experts",
    ),
    "experts' partitions": (
        lambda d: changed(optimizer_file(d), lambda c: c["optimizer_state_dict"].update(partition_count=[2, 1])),
        "over fewer ranks",
    ),
    "experts in the model's file": (
        lambda d: changed(model_file(d), lambda c: c.update(ds_autoep_layers=[{}])),
        "experts are partitioned apart",
    ),
    "tensor parallelism": (
        lambda d: (d / "bf16_zero_pp_rank_0_mp_rank_01_optim_states.pt").write_bytes(b"x"),
        "tensor or pipeline parallelism",
    ),
    "a universal checkpoint": (lambda d: (d / "zero" / "a.weight").mkdir(parents=True), "universal checkpoint"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_what_does_not_fit_together_is_refused_with_a_hint(tmp_path, what):
    damage, said = DAMAGE[what]
    folder = tmp_path / "global_step10"
    save_zero(folder, grouped(tensors(0)), frozen={"frozen": torch.ones(5)})
    open_checkpoint(folder)
    damage(folder)
    with pytest.raises((UnreadableError, UnsupportedError)) as caught:
        open_checkpoint(folder)
    caught.match(said)
    assert caught.value.hint


def test_groups_that_do_not_fit_are_refused_in_zero_2(tmp_path):
    def without_a_group(content):
        content["optimizer_state_dict"]["single_partition_of_fp32_groups"].pop()

    save_zero(tmp_path, grouped(tensors(0)), stage=2)
    place = tmp_path / "mp_rank_00_model_states.pt"
    changed(optimizer_file(tmp_path, 1), without_a_group)
    with pytest.raises(UnreadableError, match=r"its groups are not those of"):
        open_checkpoint(tmp_path, section="fp32")
    changed(optimizer_file(tmp_path, 0), without_a_group)
    with pytest.raises(UnreadableError, match=r"1 groups of parameters, and mp_rank_00_model_states\.pt names 2"):
        open_checkpoint(tmp_path, section="fp32")
    save_zero(tmp_path, grouped(tensors(0)), stage=2)
    changed(place, lambda content: content["module"].update({"a.bias": torch.ones(4)}))
    with pytest.raises(UnreadableError, match=r"a\.bias has shape \[4\] in the model"):
        open_checkpoint(tmp_path, section="fp32")


@pytest.mark.parametrize("change", [lambda group: group.popitem(), lambda group: group.update(more=torch.Size((9,)))])
def test_a_group_of_zero_2_has_nothing_but_padding_after_its_parameters(tmp_path, change):
    save_zero(tmp_path, [tensors(0)], stage=2, ranks=2)
    changed(tmp_path / "mp_rank_00_model_states.pt", lambda content: change(content["param_shapes"][0]))
    with pytest.raises(UnreadableError, match="not one number for each parameter"):
        open_checkpoint(tmp_path, section="fp32")
    for rank in (0, 1):  # older versions have none
        changed(optimizer_file(tmp_path, rank), lambda c: c["optimizer_state_dict"].pop("param_alignment_paddings"))
    with pytest.raises(UnreadableError, match=r"partitions have 50 elements, and the parameters need (43|59)"):
        open_checkpoint(tmp_path, section="fp32")


@pytest.mark.parametrize("gap", [-1, "4", None])
def test_gaps_are_numbers_of_elements(tmp_path, gap):
    save_zero(tmp_path, [tensors(0)], stage=2)
    paddings = [[gap, *[0] * (len(SHAPES) - 1)]]
    changed(optimizer_file(tmp_path), lambda c: c["optimizer_state_dict"].update(param_alignment_paddings=paddings))
    with pytest.raises(UnreadableError, match="param_alignment_paddings holds what is not a number"):
        open_checkpoint(tmp_path, section="fp32")


def test_there_may_be_very_many_gaps(tmp_path):
    """One for each parameter of a model, and none of them a dimension."""
    save_zero(tmp_path, [tensors(0)], stage=2)
    paddings = [[4] * 1000]
    changed(optimizer_file(tmp_path), lambda c: c["optimizer_state_dict"].update(param_alignment_paddings=paddings))
    assert read_partitions(optimizer_file(tmp_path)).gaps == ((4,) * 1000,)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_step_of_which_only_the_optimizer_is_there_is_not_passed_over(tmp_path, run, stage):
    """Without its name in the list, the step before would be taken for the newest."""
    for step in (90, 100):
        save_zero(tmp_path / f"global_step{step}", grouped(tensors(step)), step=step, stage=stage)
    for place in (tmp_path / "global_step100").glob("*model_states.pt"):
        place.unlink()
    ran = run("average", tmp_path, "--last", 1, "-o", tmp_path / "x.pt")
    assert ran.exit_code == 6
    assert "global_step100: " in ran.stderr
    assert "mp_rank_00_model_states.pt is missing" in ran.stderr


def test_masters_of_zero_2_that_were_deleted_are_said_to_be_missing(tmp_path):
    save_zero(tmp_path, grouped(tensors(0)), stage=2)
    for place in tmp_path.glob("*optim_states.pt"):
        place.unlink()
    with pytest.raises(UsageError, match="no float32 masters") as caught:
        open_checkpoint(tmp_path, section="fp32")
    assert "optim_states.pt" in caught.value.hint


def test_a_file_of_one_rank_is_no_checkpoint(tmp_path):
    """Averaged like any other, the files of the model would give a model of empty tensors."""
    for step in (90, 100):
        save_zero(tmp_path / f"global_step{step}", grouped(tensors(step)), step=step)
    for file in (model_file, optimizer_file):
        with pytest.raises(UnsupportedError, match="a piece of a checkpoint") as caught:
            average([file(tmp_path / "global_step90"), file(tmp_path / "global_step100")], tmp_path / "x.pt")
        assert str(tmp_path / "global_step90") in caught.value.hint
    save_zero(tmp_path / "run", grouped(tensors(0)), stage=2)  # which has all of the weights in the model's file
    assert open_checkpoint(tmp_path / "run" / "mp_rank_00_model_states.pt").format == "torch"


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path):
    save_zero(tmp_path, grouped(tensors(0)))
    optimizer_file(tmp_path, 1).unlink()
    os.mkfifo(optimizer_file(tmp_path, 1))
    with pytest.raises(UnsupportedError, match="a pipe"):
        open_checkpoint(tmp_path)


def test_there_is_one_section(tmp_path):
    save_zero(tmp_path / "run", grouped(tensors(0)))
    assert open_checkpoint(tmp_path / "run", section="fp32").section == "fp32"
    with pytest.raises(UsageError, match="no section 'module'"):
        open_checkpoint(tmp_path / "run", section="module")


def test_a_directory_of_the_trainer_without_anything_says_what_is_missing(tmp_path):
    save_trainer(tmp_path / "checkpoint-5", 5)
    for place in (tmp_path / "checkpoint-5" / "global_step5").iterdir():
        place.unlink()
    with pytest.raises(UnsupportedError, match="no partitions") as caught:
        open_checkpoint(tmp_path / "checkpoint-5")
    assert "optim_states" in caught.value.hint


def test_one_checkpoint_is_one_whatever_its_files_are_called(tmp_path):
    save_zero(tmp_path / "global_step10", grouped(tensors(0)))
    found = discover(tmp_path / "global_step10")
    assert [entry.path for entry in found.entries] == [tmp_path / "global_step10"]
