"""Checkpoints in several files: each file is averaged with its own kind, and the same files are written again."""

import os
import shutil
from argparse import Namespace

import pytest
import torch

from ckpttool import average
from ckpttool.engine.run import execute
from ckpttool.errors import MismatchError, UnreadableError, UsageError
from ckpttool.formats import format_of_directory, get_format, open_checkpoint
from ckpttool.planning.planner import make_plan
from ckpttool.planning.request import Policy
from ckpttool.selection.discovery import discover, from_paths


def state(seed, scale=1):
    """A small state dict, other for every seed."""
    generator = torch.Generator().manual_seed(seed)
    return {"weight": torch.randn(3, 4, generator=generator) * scale, "bias": torch.randn(4, generator=generator)}


def mean(*seeds):
    return {name: (sum(state(seed)[name].double() for seed in seeds) / len(seeds)).float() for name in state(0)}


def save(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


def load(path):
    return torch.load(path, weights_only=False)


def assert_state(found, *seeds):
    expected = mean(*seeds)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def files_below(folder):
    return sorted(
        os.path.relpath(os.path.join(top, name), folder) for top, _, names in os.walk(folder) for name in names
    )


# --- Megatron and NeMo -----------------------------------------------------------------------------------------


def save_megatron(folder, step, ranks=("mp_rank_00", "mp_rank_01"), **more):
    for number, rank in enumerate(ranks):
        content = {
            "args": Namespace(tensor_model_parallel_size=len(ranks)),
            "checkpoint_version": 3.0,
            "iteration": step,
            "model": {"language_model": {"encoder": state(step + number)}},
            "optimizer": {"state": {0: torch.zeros(2)}, "param_groups": []},
            "rng_state": [{"random_rng_state": (1, 2)}],
            **more,
        }
        save(folder / rank / "model_optim_rng.pt", content)
        save(folder / rank / "distrib_optim.pt", {"optimizer": torch.zeros(2)})
    return folder


@pytest.mark.parametrize("ranks", [("mp_rank_00", "mp_rank_01"), ("mp_rank_00_000", "mp_rank_00_001"), ("mp_rank_00",)])
def test_megatron_is_averaged_rank_by_rank(tmp_path, ranks):
    for step in (100, 200):
        save_megatron(tmp_path / f"iter_{step:07d}", step, ranks)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("200")
    found = discover(tmp_path)
    assert (found.layout, [entry.step for entry in found.entries]) == ("megatron", [100, 200])
    execute(make_plan(found.last(2), f"{tmp_path}/avg/"))
    output = tmp_path / "avg" / "iter_0000200"
    assert files_below(output) == sorted(f"{rank}/model_optim_rng.pt" for rank in ranks)
    for number, rank in enumerate(ranks):
        content = load(output / rank / "model_optim_rng.pt")
        assert_state(content["model"]["language_model"]["encoder"], 100 + number, 200 + number)
        assert content["iteration"] == 200
        assert content["args"] == Namespace(tensor_model_parallel_size=len(ranks))
        assert "optimizer" not in content


def test_the_pieces_of_a_virtual_pipeline_are_one_model(tmp_path):
    for step in (100, 200):
        for rank in ("mp_rank_00", "mp_rank_01"):
            content = {"iteration": step, "model0": {"encoder": state(step)}, "model1": {"encoder": state(step + 7)}}
            save(tmp_path / f"iter_{step:07d}" / rank / "model_optim_rng.pt", content)
    average(tmp_path, f"{tmp_path}/avg/", last=2)
    content = load(tmp_path / "avg" / "iter_0000200" / "mp_rank_01" / "model_optim_rng.pt")
    assert_state(content["model0"]["encoder"], 100, 200)
    assert_state(content["model1"]["encoder"], 107, 207)


def test_ranks_of_different_steps_are_refused(tmp_path):
    save_megatron(tmp_path / "iter_0000100", 100)
    shutil.copytree(tmp_path / "iter_0000100", tmp_path / "iter_0000200")
    content = load(tmp_path / "iter_0000200" / "mp_rank_01" / "model_optim_rng.pt")
    save(tmp_path / "iter_0000200" / "mp_rank_01" / "model_optim_rng.pt", {**content, "iteration": 200})
    with pytest.raises(UnreadableError, match="different steps: 100, 200"):
        open_checkpoint(tmp_path / "iter_0000200")


def test_a_rank_without_its_file_is_refused(tmp_path):
    save_megatron(tmp_path / "iter_0000100", 100)
    save_megatron(tmp_path / "iter_0000200", 200)
    (tmp_path / "iter_0000200" / "mp_rank_01" / "model_optim_rng.pt").unlink()
    with pytest.raises(UnreadableError, match=r"model_optim_rng\.pt is missing") as caught:
        discover(tmp_path).last(2)
    assert "exclude='iter_0000200'" in caught.value.hint


def test_other_degrees_of_parallelism_do_not_match(tmp_path):
    save_megatron(tmp_path / "iter_0000100", 100)
    save_megatron(tmp_path / "iter_0000200", 200, ("mp_rank_00", "mp_rank_01", "mp_rank_02"))
    with pytest.raises(MismatchError, match="mp_rank_02:"):
        make_plan(discover(tmp_path).last(2), f"{tmp_path}/avg/")


def test_pieces_are_not_joined_in_one_file(tmp_path):
    for step in (100, 200):
        save_megatron(tmp_path / f"iter_{step:07d}", step)
    with pytest.raises(UsageError, match="cannot be joined"):
        make_plan(discover(tmp_path).last(2), tmp_path / "one.safetensors")


def test_one_rank_alone_can_be_written_as_one_file(tmp_path):
    for step in (100, 200):
        save_megatron(tmp_path / f"iter_{step:07d}", step, ("mp_rank_00",))
    average(tmp_path, tmp_path / "one.pt", last=2)
    assert_state({name.rpartition(".")[2]: tensor for name, tensor in load(tmp_path / "one.pt").items()}, 100, 200)


def test_nemo_keeps_every_checkpoint_in_every_rank_folder(tmp_path):
    for step in (100, 200, 300):
        for number, rank in enumerate(("mp_rank_00", "mp_rank_01")):
            name = f"gpt--val_loss={3 - step / 1000:.2f}-epoch=0-step={step}.ckpt"
            save(tmp_path / rank / name, {"global_step": step, "state_dict": state(step + number), "loops": {}})
    found = discover(tmp_path)
    assert (found.layout, [entry.step for entry in found.entries]) == ("nemo", [100, 200, 300])
    assert "in each of 2 folders like mp_rank_00" in found.why
    execute(make_plan(found.last(2), f"{tmp_path}/avg/"))
    (output,) = (tmp_path / "avg").iterdir()
    assert files_below(output) == [f"{rank}/{output.name}.ckpt" for rank in ("mp_rank_00", "mp_rank_01")]
    for number, rank in enumerate(("mp_rank_00", "mp_rank_01")):
        assert_state(load(output / rank / f"{output.name}.ckpt")["state_dict"], 200 + number, 300 + number)


# --- DeepSpeed and gpt-neox ------------------------------------------------------------------------------------


def save_deepspeed(folder, step, *, zero=True):
    for number in range(2):
        content = {
            "module": {name: tensor.bfloat16() for name, tensor in state(step + number).items()},
            "optimizer": None if zero else {"state": {}},
            "lr_scheduler": {"last_epoch": step},
            "ds_version": "0.14",
            "global_steps": step,
            "param_shapes": [],
        }
        save(folder / f"mp_rank_{number:02d}_model_states.pt", content)
        if zero:
            save(folder / f"zero_pp_rank_0_mp_rank_{number:02d}_optim_states.pt", {"optimizer_state_dict": {}})


def test_deepspeed_averages_module_weights_and_says_what_they_are(tmp_path):
    for step in (10, 20):
        save_deepspeed(tmp_path / f"global_step{step}", step)
    (tmp_path / "latest").write_text("global_step20")
    found = discover(tmp_path)
    assert found.layout == "deepspeed"
    plan = make_plan(found.last(2), f"{tmp_path}/avg/")
    assert any("not the float32 masters" in note and "bfloat16" in note for note in plan.notes)
    execute(plan)
    output = tmp_path / "avg" / "global_step20"
    assert files_below(output) == ["mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"]
    content = load(output / "mp_rank_01_model_states.pt")
    for name, tensor in content["module"].items():
        both = [state(seed)[name].bfloat16().double() for seed in (11, 21)]
        assert torch.equal(tensor, (sum(both) / 2).float().bfloat16())
    assert content["global_steps"] == 20
    assert content["optimizer"] is None


def test_without_zero_there_is_nothing_to_warn_about(tmp_path):
    save_deepspeed(tmp_path / "global_step10", 10, zero=False)
    assert not any("masters" in note for note in open_checkpoint(tmp_path / "global_step10").notes)


def test_the_layer_files_of_gpt_neox_are_averaged_and_what_holds_no_weights_is_copied(tmp_path):
    for step in (10, 20):
        folder = tmp_path / f"global_step{step}"
        for layer in (0, 2):
            save(folder / f"layer_{layer:02d}-model_00-model_states.pt", state(step + layer))
        save(folder / "mp_rank_00_model_states.pt", {"module": None, "global_steps": step, "optimizer": None})
        (folder / "configs").mkdir()
        (folder / "configs" / "small.yml").write_text("{}")
    average(tmp_path, f"{tmp_path}/avg/", last=2)
    output = tmp_path / "avg" / "global_step20"
    assert files_below(output) == [
        "configs/small.yml",
        "layer_00-model_00-model_states.pt",
        "layer_02-model_00-model_states.pt",
        "mp_rank_00_model_states.pt",
    ]
    for layer in (0, 2):
        assert_state(load(output / f"layer_{layer:02d}-model_00-model_states.pt"), 10 + layer, 20 + layer)
    assert load(output / "mp_rank_00_model_states.pt")["global_steps"] == 20


# --- fairseq and fairseq2 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", ["-shard", "_part", "-model_part-"])
def test_the_shards_of_fairseq_are_one_checkpoint(tmp_path, mark):
    for epoch in (1, 2, 3):
        for number in range(3):
            content = {"args": None, "model": state(10 * epoch + number), "last_optimizer_state": {"state": {}}}
            save(tmp_path / f"checkpoint{epoch}{mark}{number}.pt", content)
    for number in range(3):
        shutil.copy(tmp_path / f"checkpoint3{mark}{number}.pt", tmp_path / f"checkpoint_last{mark}{number}.pt")
    found = discover(tmp_path)
    assert (found.layout, [entry.step for entry in found.entries]) == ("fairseq", [1, 2, 3])
    execute(make_plan(found.last(2), f"{tmp_path}/avg/"))
    output = tmp_path / "avg" / "checkpoint3"
    assert sorted(os.listdir(output)) == [f"checkpoint3{mark}{number}.pt" for number in range(3)]
    for number in range(3):
        content = load(output / f"checkpoint3{mark}{number}.pt")
        assert_state(content["model"], 20 + number, 30 + number)
        assert content["last_optimizer_state"] is None
    assert open_checkpoint(output).provenance["members"][0]["name"] == "checkpoint2"


def test_a_hole_among_shards_is_refused(tmp_path):
    for number in (0, 1, 3):
        save(tmp_path / f"checkpoint1-shard{number}.pt", {"model": state(number)})
    with pytest.raises(UnreadableError, match=r"checkpoint1-shard2\.pt is missing"):
        open_checkpoint(tmp_path / "checkpoint1-shard0.pt")


def test_a_shard_too_few_does_not_match(tmp_path):
    for epoch, count in ((1, 3), (2, 2)):
        for number in range(count):
            save(tmp_path / f"checkpoint{epoch}-shard{number}.pt", {"model": state(number)})
    with pytest.raises(MismatchError, match="shard2:"):
        make_plan(discover(tmp_path).last(2), f"{tmp_path}/avg/")


def test_fairseq2_is_averaged_file_by_file(tmp_path):
    names = ["model/pp_00/tp_00/sdp_00.pt", "model/pp_00/tp_01/sdp_00.pt"]
    for step in (100, 200):
        for number, name in enumerate(names):
            save(tmp_path / f"step_{step}" / name, state(step + number))
        save(tmp_path / f"step_{step}" / "optimizer" / "pp_00" / "x.pt", {"state": {}})
    found = discover(tmp_path)
    assert found.layout == "fairseq2"
    execute(make_plan(found.last(2), f"{tmp_path}/avg/"))
    output = tmp_path / "avg" / "step_200"
    assert files_below(output) == names
    for number, name in enumerate(names):
        assert_state(load(output / name), 100 + number, 200 + number)


# --- SpeechBrain, and one file in a directory --------------------------------------------------------------------


def save_speechbrain(folder, seed):
    folder.mkdir(parents=True)
    (folder / "CKPT.yaml").write_text(f"end-of-epoch: true\nunixtime: {seed}\nWER: {seed}\n")
    save(folder / "model.ckpt", state(seed))
    save(folder / "lm.ckpt", state(seed + 50))
    save(folder / "normalizer.ckpt", {"count": seed, "glob_mean": torch.full((2,), float(seed)), "spk_dict_mean": {}})
    save(folder / "noam_scheduler.ckpt", {"losses": [], "n_steps": seed})
    save(folder / "optimizer.ckpt", {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": []})
    (folder / "counter.ckpt").write_text(str(seed))
    (folder / "dataloader-TRAIN.ckpt").write_text("7")


def test_speechbrain_averages_models_and_copies_the_objects_that_its_loader_wants(tmp_path):
    names = ["CKPT+2024-01-01+10-00-00+00", "CKPT+2024-01-02+10-00-00+00"]
    for seed, name in enumerate(names, 1):
        save_speechbrain(tmp_path / name, seed)
    found = discover(tmp_path)
    assert found.layout == "speechbrain"
    plan = make_plan(found.last(2), f"{tmp_path}/avg/")
    assert any("copied from the newest: counter.ckpt" in note for note in plan.notes)
    execute(plan)
    output = tmp_path / "avg" / names[1]
    assert sorted(os.listdir(output)) == [
        "CKPT.yaml",
        "counter.ckpt",
        "lm.ckpt",
        "model.ckpt",
        "noam_scheduler.ckpt",
        "normalizer.ckpt",
    ]
    assert_state(load(output / "model.ckpt"), 1, 2)
    assert_state(load(output / "lm.ckpt"), 51, 52)
    for name in ("CKPT.yaml", "counter.ckpt", "normalizer.ckpt", "noam_scheduler.ckpt"):
        assert (output / name).read_bytes() == (tmp_path / names[1] / name).read_bytes()


def test_one_plain_file_in_a_directory_keeps_its_names_and_its_configuration(tmp_path):
    for step in (1000, 2000):
        folder = tmp_path / f"step{step}-unsharded"
        save(folder / "model.pt", state(step))
        save(folder / "optim.pt", {"state": {}})
        save(folder / "train.pt", {"global_step": step})
        (folder / "config.yaml").write_text("model: {}")
    found = discover(tmp_path)
    assert found.layout == "olmo"
    execute(make_plan(found.last(2), f"{tmp_path}/avg/"))
    output = tmp_path / "avg" / "step2000-unsharded"
    assert sorted(os.listdir(output)) == ["config.yaml", "model.pt"]
    assert_state(load(output / "model.pt"), 1000, 2000)
    average(tmp_path, tmp_path / "one.safetensors", last=2)


def test_the_directories_of_litgpt_keep_their_configuration_and_tokenizer(tmp_path):
    names = ["lit_model.pth", "model_config.yaml", "hyperparameters.yaml", "tokenizer.json", "tokenizer.model"]
    for step in (1000, 2000):
        folder = tmp_path / f"step-{step:08d}"
        save(folder / "lit_model.pth", {"model": state(step), "optimizer": {"state": {}}, "iter_num": step})
        for name in names[1:]:
            (folder / name).write_text(name)
    average([tmp_path / "step-00001000", tmp_path / "step-00002000"], tmp_path / "out")
    assert files_below(tmp_path / "out") == sorted(names)
    assert_state(load(tmp_path / "out" / "lit_model.pth")["model"], 1000, 2000)


def test_an_unpacked_nemo_archive_is_a_directory_to_be_packed_again(tmp_path):
    for step in (1, 2):
        folder = tmp_path / f"step_{step}"
        save(folder / "model_weights.ckpt", state(step))
        (folder / "model_config.yaml").write_text("a: 1")
        (folder / "0123_tokenizer.model").write_bytes(b"spm")
    average([tmp_path / "step_1", tmp_path / "step_2"], tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["0123_tokenizer.model", "model_config.yaml", "model_weights.ckpt"]
    assert_state(load(tmp_path / "out" / "model_weights.ckpt"), 1, 2)


# --- in general ------------------------------------------------------------------------------------------------


def test_a_copy_of_the_weights_in_every_file_is_averaged_with_its_own_kind(tmp_path):
    for step in (100, 200):
        for number, rank in enumerate(("mp_rank_00", "mp_rank_01")):
            content = {"iteration": step, "model": state(step + number), "ema": state(step + number + 50)}
            save(tmp_path / f"iter_{step:07d}" / rank / "model_optim_rng.pt", content)
    average(tmp_path, f"{tmp_path}/avg/", last=2)
    content = load(tmp_path / "avg" / "iter_0000200" / "mp_rank_01" / "model_optim_rng.pt")
    assert_state(content["model"], 101, 201)
    assert_state(content["ema"], 151, 251)


def test_a_single_checkpoint_is_not_mistaken_for_a_model_directory(tmp_path):
    save_megatron(tmp_path / "iter_0000100", 100)
    found = discover(tmp_path / "iter_0000100")
    assert (found.layout, len(found.entries)) == ("single", 1)


def test_a_list_of_directories_is_a_list_of_checkpoints(tmp_path):
    for step in (100, 200):
        save_megatron(tmp_path / f"iter_{step:07d}", step)
    found = from_paths([tmp_path / "iter_0000200", tmp_path / "iter_0000100"])
    assert [entry.step for entry in found.entries] == [200, 100]
    execute(make_plan(found, tmp_path / "out"))
    assert format_of_directory(tmp_path / "out") is get_format("parts")


def test_the_whole_is_replaced_by_force_and_stays_without(tmp_path):
    for step in (100, 200):
        save_megatron(tmp_path / f"iter_{step:07d}", step)
    found = discover(tmp_path).last(2)
    for _ in range(2):
        execute(make_plan(found, f"{tmp_path}/avg/", policy=Policy(force=True)))
    assert os.listdir(tmp_path / "avg") == ["iter_0000200"]
    assert [entry.step for entry in discover(tmp_path).last_default().entries] == [100, 200]


def test_an_average_named_like_a_checkpoint_is_left_out_by_what_it_says(tmp_path):
    for step in (100, 200):
        save_megatron(tmp_path / f"iter_{step:07d}", step)
    average(tmp_path, tmp_path / "iter_0000300", last=2)
    assert [entry.step for entry in discover(tmp_path).last_default().entries] == [100, 200]


def test_a_broken_file_among_many_is_named(tmp_path):
    save_megatron(tmp_path / "iter_0000100", 100)
    place = tmp_path / "iter_0000100" / "mp_rank_01" / "model_optim_rng.pt"
    place.write_bytes(place.read_bytes()[:500])
    with pytest.raises(UnreadableError) as caught:
        open_checkpoint(tmp_path / "iter_0000100")
    assert "mp_rank_01" in str(caught.value)
    place.write_bytes(b"")
    with pytest.raises(UnreadableError, match="empty"):
        open_checkpoint(tmp_path / "iter_0000100")
