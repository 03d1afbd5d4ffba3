"""Hugging Face's directories: shards, indexes, components; what is read, what is refused, what is written."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ckpttool import average
from ckpttool.cli import main as cli
from ckpttool.engine.run import execute
from ckpttool.errors import (
    MismatchError,
    NotFoundError,
    OutputExistsError,
    UnreadableError,
    UnsupportedError,
    UsageError,
)
from ckpttool.formats import format_of_directory, open_checkpoint
from ckpttool.planning.planner import make_plan
from ckpttool.planning.request import Policy
from ckpttool.selection.discovery import discover, from_paths

NAMES = ["embed.weight", "layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias", "norm.weight"]
AUXILIARY = {
    "config.json": '{"model_type": "tiny"}',
    "generation_config.json": "{}",
    "tokenizer.json": "{}",
    "tokenizer.model": "\x00\x01",
    "special_tokens_map.json": "{}",
    "vocab.txt": "a\nb\n",
    "merges.txt": "",
    "chat_template.jinja": "{{ x }}",
    "preprocessor_config.json": "{}",
    "modeling_tiny.py": "raise SystemExit('never run')",
    "README.md": "# tiny",
}
STATE = ["optimizer.pt", "scheduler.pt", "rng_state_0.pth", "scaler.pt", "training_args.bin"]


def weights(seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"embed.weight": (7, 4), "norm.weight": (4,)}
    return {
        name: torch.randn(shapes.get(name, (4, 4) if "weight" in name else (4,)), generator=generator) for name in NAMES
    }


def save_shards(folder, tensors, count, *, stem="model", suffix="safetensors", index=None):
    """Save as transformers does: in one file, or in `count` shards with an index."""
    folder.mkdir(parents=True, exist_ok=True)

    def write(some, name):
        if suffix == "bin":
            torch.save(some, folder / name)
        else:
            save_file(some, folder / name, metadata={"format": "pt"})

    if count == 1:
        write(tensors, f"{stem}.{suffix}")
        return
    weight_map = {}
    for number in range(count):
        name = f"{stem}-{number + 1:05d}-of-{count:05d}.{suffix}"
        some = {key: tensors[key] for key in list(tensors)[number::count]}
        write(some, name)
        weight_map.update(dict.fromkeys(some, name))
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    content = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / (index or f"{stem}.{suffix}.index.json")).write_text(json.dumps(content))


def save_checkpoint(run, step, count=1, **how):
    """A trainer's checkpoint: weights, auxiliary files, training state."""
    folder = run / f"checkpoint-{step}"
    save_shards(folder, weights(step), count, **how)
    for name, text in AUXILIARY.items():
        (folder / name).write_text(text)
    for name in STATE:
        torch.save({"state": {0: torch.zeros(3)}}, folder / name)
    record = {"global_step": step, "epoch": step / 10, "log_history": [{"step": step, "eval_loss": 1 / step}]}
    (folder / "trainer_state.json").write_text(json.dumps(record))
    return folder


def mean(*steps):
    return {name: sum(weights(step)[name].double() for step in steps).div(len(steps)).float() for name in NAMES}


def load(folder, suffix="safetensors"):
    found = {}
    for file in sorted(Path(folder).glob(f"*.{suffix}")):
        found.update(load_file(file) if suffix == "safetensors" else torch.load(file, weights_only=True))
    return found


def left_out(checkpoint):
    """What is not copied, by its path in the directory, with the reason."""
    return {item.path.relative_to(checkpoint.path).as_posix(): item.reason for item in checkpoint.left_out}


def assert_mean(folder, *steps, suffix="safetensors"):
    found, expected = load(folder, suffix), mean(*steps)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.fixture
def run(tmp_path):
    """A run whose checkpoints are sharded differently."""
    for step, count in ((10, 1), (20, 3), (30, 2)):
        save_checkpoint(tmp_path / "run", step, count)
    return tmp_path / "run"


# --- reading and writing ---------------------------------------------------------------------------------------


def test_members_sharded_differently_are_averaged_into_the_shards_of_the_newest(run):
    found = discover(run)
    assert found.layout == "huggingface"
    execute(make_plan(found.last(3), f"{run}/avg/"))
    output = run / "avg" / "checkpoint-30"
    assert_mean(output, 10, 20, 30)
    own = json.loads((run / "checkpoint-30" / "model.safetensors.index.json").read_text())
    index = json.loads((output / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == own["weight_map"]
    assert index["metadata"]["total_size"] == own["metadata"]["total_size"]


def test_auxiliary_files_are_copied_byte_for_byte_and_training_state_is_not(run):
    average(run, f"{run}/avg/", last=3)
    output = run / "avg" / "checkpoint-30"
    shards = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"}
    assert set(os.listdir(output)) == shards | set(AUXILIARY)
    for name in AUXILIARY:
        assert (output / name).read_bytes() == (run / "checkpoint-30" / name).read_bytes()


def test_training_state_is_named_and_kept_where_it_is_asked_for(run):
    plan = make_plan(discover(run).last(2), f"{run}/avg/")
    assert any("training state left out" in note and "optimizer.pt" in note for note in plan.notes)
    execute(make_plan(discover(run).last(2), run / "kept", policy=Policy(keep_state=True)))
    assert {*STATE, "trainer_state.json"} < set(os.listdir(run / "kept"))


def test_the_state_of_accelerate_is_training_state(tmp_path):
    """Its load_state wants every file that save_state wrote, scheduler.bin among them."""
    state = {"optimizer.bin", "scheduler.bin", "scheduler_1.bin", "sampler.bin", "dl_state_dict.bin"}
    state |= {"random_states_0.pkl", "custom_checkpoint_0.pkl"}
    for number in (9, 10):
        directory = tmp_path / f"checkpoint_{number}"
        directory.mkdir()
        save_file({"w": torch.full((2,), float(number))}, directory / "model.safetensors")
        for name in state:
            (directory / name).write_bytes(b"state")
    average(tmp_path, f"{tmp_path}/avg/", last=2)
    assert os.listdir(tmp_path / "avg" / "checkpoint_10") == ["model.safetensors"]
    average(tmp_path, f"{tmp_path}/kept/", last=2, keep_state=True)
    assert set(os.listdir(tmp_path / "kept" / "checkpoint_10")) == {"model.safetensors"} | state


def test_every_shard_says_what_it_was_made_of_and_the_output_is_an_earlier_average(run):
    average(run, f"{run}/avg/", last=3)
    for shard in (run / "avg" / "checkpoint-30").glob("*.safetensors"):
        with safe_open(shard, "pt") as file:
            assert [member["step"] for member in json.loads(file.metadata()["ckpttool"])["members"]] == [10, 20, 30]
            assert file.metadata()["format"] == "pt"
    shutil.copytree(run / "avg" / "checkpoint-30", run / "checkpoint-40")
    found = discover(run).last(3)
    assert [entry.name for entry in found.entries] == ["checkpoint-10", "checkpoint-20", "checkpoint-30"]
    assert [entry.name for entry in discover(run).last(2).entries] == ["checkpoint-20", "checkpoint-30"]


def test_a_file_name_as_output_gives_one_file(run, tmp_path):
    average(run, tmp_path / "one.safetensors", last=3)
    assert {name: tensor.tolist() for name, tensor in load_file(tmp_path / "one.safetensors").items()} == {
        name: tensor.tolist() for name, tensor in mean(10, 20, 30).items()
    }


@pytest.mark.parametrize("count", [1, 2])
def test_bin_files_stay_bin_files(tmp_path, count):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, count, stem="pytorch_model", suffix="bin")
    average(tmp_path, f"{tmp_path}/avg/", last=2)
    output = tmp_path / "avg" / "checkpoint-2"
    assert_mean(output, 1, 2, suffix="bin")
    assert (output / "pytorch_model.bin.index.json").exists() == (count > 1)


def test_safetensors_and_bin_members_go_together(tmp_path):
    save_checkpoint(tmp_path, 1, 2, stem="pytorch_model", suffix="bin")
    save_checkpoint(tmp_path, 2, 3)
    average(tmp_path, f"{tmp_path}/avg/", last=2)
    assert_mean(tmp_path / "avg" / "checkpoint-2", 1, 2)


@pytest.mark.parametrize(
    ("stem", "index"),
    [
        ("model.fp16", "model.safetensors.index.fp16.json"),
        ("adapter_model", None),
        ("diffusion_pytorch_model", None),
        ("ft-model", "model.safetensors.index.json"),
    ],
)
def test_variants_and_other_stems_keep_their_names(tmp_path, stem, index):
    for step in (1, 2):
        save_shards(tmp_path / f"checkpoint-{step}", weights(step), 2, stem=stem, index=index)
    average([tmp_path / "checkpoint-1", tmp_path / "checkpoint-2"], tmp_path / "out")
    assert_mean(tmp_path / "out", 1, 2)
    expected = set(os.listdir(tmp_path / "checkpoint-2"))
    assert set(os.listdir(tmp_path / "out")) == expected


def test_numbered_pieces_without_an_index_are_one_model(tmp_path):
    for step in (100, 200):
        folder = tmp_path / f"step_{step}"
        folder.mkdir()
        tensors = weights(step)
        save_file({name: tensors[name] for name in NAMES[:3]}, folder / "model.00.safetensors")
        save_file({name: tensors[name] for name in NAMES[3:]}, folder / "model.01.safetensors")
        for name in ("config.json", "vocab.json"):
            (folder / name).write_text("{}")
        torch.save({}, folder / "optimizer.pt")
    found = discover(tmp_path)
    assert found.layout == "eole"
    average(tmp_path, f"{tmp_path}/avg/", last=2)
    assert_mean(tmp_path / "avg" / "step_200", 100, 200)
    assert sorted(os.listdir(tmp_path / "avg" / "step_200")) == [
        "config.json",
        "model.00.safetensors",
        "model.01.safetensors",
        "vocab.json",
    ]


def test_a_tensor_in_two_pieces_is_refused(tmp_path):
    for name in ("model.00.safetensors", "model.01.safetensors"):
        save_file(weights(1), tmp_path / name)
    with pytest.raises(UnreadableError, match=r"in two files, model\.00\.safetensors and model\.01\.safetensors"):
        open_checkpoint(tmp_path)


def test_adapters_carry_their_configuration_and_a_note(tmp_path):
    for step in (1, 2):
        save_shards(tmp_path / f"checkpoint-{step}", weights(step), 1, stem="adapter_model")
        (tmp_path / f"checkpoint-{step}" / "adapter_config.json").write_text("{}")
    plan = make_plan(discover(tmp_path).last(2), f"{tmp_path}/avg/")
    assert [note for note in plan.notes if "not the mean of the products" in note]
    execute(plan)
    assert (tmp_path / "avg" / "checkpoint-2" / "adapter_config.json").exists()


def test_ties_that_safetensors_notes_and_ties_of_bin_files_survive(tmp_path):
    for step in (1, 2):
        tied = weights(step)
        tied["head.weight"] = tied["embed.weight"]
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        torch.save(tied, folder / "pytorch_model.bin")
    average(tmp_path, f"{tmp_path}/avg/", last=2)
    found = torch.load(tmp_path / "avg" / "checkpoint-2" / "pytorch_model.bin", weights_only=True)
    assert found["head.weight"].data_ptr() == found["embed.weight"].data_ptr()


# --- components ------------------------------------------------------------------------------------------------


def save_diffusion(folder, step):
    for name, seed in (("unet", step), ("unet_ema", step + 100)):
        save_shards(folder / name, weights(seed), 1, stem="diffusion_pytorch_model")
        (folder / name / "config.json").write_text(json.dumps({"name": name}))
    (folder / "optimizer.bin").write_bytes(b"\0" * 10)
    (folder / "random_states_0.pkl").write_bytes(b"\0" * 10)


def test_a_model_and_its_moving_average_in_folders_are_averaged_each_with_its_kind(tmp_path):
    for step in (1, 2):
        save_diffusion(tmp_path / f"checkpoint-{step}", step)
    assert discover(tmp_path).layout == "diffusers"
    average(tmp_path, f"{tmp_path}/avg/", last=2)
    output = tmp_path / "avg" / "checkpoint-2"
    assert_mean(output / "unet", 1, 2)
    assert_mean(output / "unet_ema", 101, 102)
    assert json.loads((output / "unet_ema" / "config.json").read_text()) == {"name": "unet_ema"}
    assert sorted(os.listdir(output)) == ["unet", "unet_ema"]


def test_one_component_can_be_chosen(tmp_path):
    for step in (1, 2):
        save_diffusion(tmp_path / f"checkpoint-{step}", step)
    average(tmp_path, tmp_path / "ema.safetensors", last=2, section="unet_ema")
    assert torch.equal(load_file(tmp_path / "ema.safetensors")["norm.weight"], mean(101, 102)["norm.weight"])
    average(tmp_path, tmp_path / "ema", last=2, section="unet_ema")
    assert_mean(tmp_path / "ema" / "unet_ema", 101, 102)


def test_several_components_keep_their_names_apart(tmp_path):
    for step in (1, 2):
        for name in ("transformer", "text_encoder"):
            stem = "model" if name == "text_encoder" else "diffusion_pytorch_model"
            save_shards(tmp_path / f"checkpoint-{step}" / name, weights(step), 2, stem=stem)
    paths = [tmp_path / "checkpoint-1", tmp_path / "checkpoint-2"]
    assert "transformer:norm.weight" in open_checkpoint(paths[0]).weights
    average(paths, tmp_path / "out")
    assert_mean(tmp_path / "out" / "transformer", 1, 2)
    assert_mean(tmp_path / "out" / "text_encoder", 1, 2)


def test_the_dense_layers_of_sentence_transformers_are_averaged_as_well(tmp_path):
    for step in (1, 2):
        folder = save_checkpoint(tmp_path, step)
        (folder / "modules.json").write_text("[]")
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text("{}")
        save_shards(folder / "2_Dense", weights(step), 1)
    average(tmp_path, f"{tmp_path}/avg/", last=2)
    output = tmp_path / "avg" / "checkpoint-2"
    assert_mean(output, 1, 2)
    assert_mean(output / "2_Dense", 1, 2)
    assert (output / "1_Pooling" / "config.json").exists()


# --- shard sizes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 64, 100, 128, 130, 200, 10**9])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_splitting_anew_is_greedy_and_complete(tmp_path, limit, suffix):
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    for step in (1, 2):
        save_checkpoint(tmp_path, step, 2, stem=stem, suffix=suffix)
    plan = make_plan(discover(tmp_path).last(2), tmp_path / "out", policy=Policy(max_shard_size=limit))
    execute(plan)
    assert_mean(tmp_path / "out", 1, 2, suffix=suffix)
    shards = sorted((tmp_path / "out").glob(f"{stem}*.{suffix}"))
    sizes = []
    for shard in shards:
        tensors = load_file(shard) if suffix == "safetensors" else torch.load(shard, weights_only=True)
        sizes.append(sum(tensor.nbytes for tensor in tensors.values()))
        assert sizes[-1] <= limit or len(tensors) == 1
    expected = []
    for identity in plan.artifact.tensors:
        nbytes = plan.artifact.tensors[identity].nbytes
        if expected and expected[-1] + nbytes <= limit:
            expected[-1] += nbytes
        else:
            expected.append(nbytes)
    assert sizes == expected
    index = tmp_path / "out" / f"{stem}.{suffix}.index.json"
    assert index.exists() == (len(shards) > 1)
    if len(shards) == 1:
        assert shards[0].name == f"{stem}.{suffix}"
    else:
        content = json.loads(index.read_text())
        assert set(content["weight_map"].values()) == {shard.name for shard in shards}
        assert content["metadata"]["total_size"] == sum(sizes)
    assert open_checkpoint(tmp_path / "out").weights.keys() == set(NAMES)


def test_the_total_size_counts_the_bytes_of_the_output(run):
    execute(make_plan(discover(run).last(2), run / "half", policy=Policy(dtype="bfloat16")))
    index = json.loads((run / "half" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.numel() * 2 for tensor in weights(0).values())


def test_shards_of_a_chosen_size_are_for_directories(run, tmp_path):
    with pytest.raises(UsageError, match="no shards"):
        make_plan(discover(run).last(2), tmp_path / "x.safetensors", policy=Policy(max_shard_size=100))


@pytest.mark.parametrize(("text", "count"), [("150B", 2), ("0.15KB", 2), ("1GiB", 1), ("64", 5)])
def test_the_option_takes_sizes_with_units(run, text, count):
    assert run_cli("average", run, "--last", "2", "-o", run / "out", "--max-shard-size", text, "-q") == 0
    assert len(list((run / "out").glob("*.safetensors"))) == count


@pytest.mark.parametrize("text", ["5XB", "", "-1", "0", "iB"])
def test_the_option_refuses_what_is_no_size(run, text):
    assert run_cli("average", run, "--last", "2", "-o", run / "out", "--max-shard-size", text) == 2


def run_cli(*arguments):
    try:
        return cli([str(argument) for argument in arguments]) or 0
    except SystemExit as stop:
        return stop.code or 0


# --- what cannot be trusted ------------------------------------------------------------------------------------


def edit_index(folder, change):
    place = folder / "model.safetensors.index.json"
    content = json.loads(place.read_text())
    change(content)
    place.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "name",
    [
        "../model-00001-of-00003.safetensors",
        "/etc/passwd",
        "sub/model.safetensors",
        "sub\\model.safetensors",
        "C:model.safetensors",
        "..",
        "",
        "model-00001-of-00003.bin",
        "optimizer.pt",
        7,
        None,
    ],
)
def test_an_index_names_files_next_to_it_and_no_others(run, name):
    edit_index(run / "checkpoint-20", lambda content: content["weight_map"].update({NAMES[0]: name}))
    with pytest.raises(UnreadableError, match=r"not the name of a \.safetensors file next to it") as caught:
        open_checkpoint(run / "checkpoint-20")
    assert caught.value.tensor == NAMES[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content["weight_map"].pop(NAMES[0]), "does not name it"),
        (lambda content: content["weight_map"].update(extra="model-00001-of-00003.safetensors"), "it is not in there"),
        (
            lambda content: content["weight_map"].update({NAMES[0]: "model-00002-of-00003.safetensors"}),
            "it is in model-00001-of-00003.safetensors",
        ),
        (lambda content: content.pop("weight_map"), "no weight_map"),
        (lambda content: content["weight_map"].clear(), "no weight_map"),
        (
            lambda content: content["weight_map"].update({NAMES[0]: "model-00009-of-00003.safetensors"}),
            "model-00009-of-00003.safetensors is missing",
        ),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_refused(run, change, said):
    edit_index(run / "checkpoint-20", change)
    with pytest.raises(UnreadableError, match=said):
        open_checkpoint(run / "checkpoint-20")


def test_a_tensor_in_two_shards_is_refused(run):
    folder = run / "checkpoint-20"
    shard = folder / "model-00002-of-00003.safetensors"
    save_file({**load_file(shard), NAMES[0]: torch.zeros(7, 4)}, shard)
    with pytest.raises(UnreadableError, match="in two shards") as caught:
        open_checkpoint(folder)
    assert caught.value.tensor == NAMES[0]


def test_a_key_twice_in_the_index_is_refused(run):
    place = run / "checkpoint-20" / "model.safetensors.index.json"
    place.write_text(place.read_text().replace('"weight_map": {', f'"weight_map": {{"{NAMES[0]}": "x.safetensors", '))
    with pytest.raises(UnreadableError, match="twice"):
        open_checkpoint(run / "checkpoint-20")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000])
def test_an_index_that_is_no_index_is_refused(run, text):
    (run / "checkpoint-20" / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UnreadableError):
        open_checkpoint(run / "checkpoint-20")


def test_a_wrong_total_size_is_said(run):
    edit_index(run / "checkpoint-20", lambda content: content["metadata"].update(total_size=1))
    assert any("states a total size of 1 bytes" in note for note in open_checkpoint(run / "checkpoint-20").notes)
    assert not any("total size" in note for note in open_checkpoint(run / "checkpoint-30").notes)


def test_an_index_next_to_one_file_is_not_taken_as_transformers_does(run):
    folder = run / "checkpoint-20"
    save_file(weights(99), folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    assert [file.name for file in checkpoint.files] == ["model.safetensors"]
    assert any("averaged; not model.safetensors.index.json" in note for note in checkpoint.notes)
    assert "model-00001-of-00003.safetensors" in left_out(checkpoint)
    average([run / "checkpoint-10", folder], run / "out")
    assert not list((run / "out").glob("*-of-*"))


def test_a_bin_file_next_to_safetensors_is_not_taken(run):
    torch.save(weights(99), run / "checkpoint-10" / "pytorch_model.bin")
    checkpoint = open_checkpoint(run / "checkpoint-10")
    assert [file.name for file in checkpoint.files] == ["model.safetensors"]
    assert any("averaged; not pytorch_model.bin" in note for note in checkpoint.notes)
    assert left_out(checkpoint) == {"pytorch_model.bin": "weights that are not averaged"}


def test_a_model_and_an_adapter_in_one_directory_are_a_question(run):
    save_file({"lora_A.weight": torch.zeros(2)}, run / "checkpoint-10" / "adapter_model.safetensors")
    with pytest.raises(UsageError, match=r"a model .* and an adapter"):
        open_checkpoint(run / "checkpoint-10")


# --- a run as it is --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", ["model-00002-of-00003.safetensors", "model.safetensors.index.json"])
def test_a_half_written_newest_checkpoint_is_an_error_that_says_how_to_go_without_it(run, lost):
    save_checkpoint(run, 40, 3)
    (run / "checkpoint-40" / lost).unlink()
    with pytest.raises(UnreadableError) as caught:
        discover(run).last(2)
    assert "exclude='checkpoint-40'" in caught.value.hint
    assert [entry.step for entry in discover(run, exclude=["checkpoint-40"]).last(2).entries] == [20, 30]


def test_unfinished_and_foreign_directories_are_left_out(run):
    shutil.copytree(run / "checkpoint-10", run / "tmp-checkpoint-40")
    shutil.copytree(run / "checkpoint-10", run / "checkpoint-50.tmp")
    (run / "checkpoint-60").mkdir()
    (run / "checkpoint-60" / "model.safetensors.tmp").write_bytes(b"")
    (run / "runs" / "events").mkdir(parents=True)
    shutil.copytree(run / "checkpoint-10", run / "avg" / "checkpoint-30")
    save_file(weights(1), run / "model.safetensors")
    assert [entry.name for entry in discover(run).last_default().entries] == [
        "checkpoint-10",
        "checkpoint-20",
        "checkpoint-30",
    ]


def test_a_directory_of_runs_is_a_question(run):
    with pytest.raises(UsageError, match="further down"):
        discover(run.parent)


def test_a_checkpoint_directory_alone_is_one_checkpoint(run, tmp_path):
    found = discover(run / "checkpoint-20")
    assert [entry.checkpoint.step for entry in found.entries] == [20]
    execute(make_plan(found.last(1), tmp_path / "out"))
    assert torch.equal(load(tmp_path / "out")["norm.weight"], weights(20)["norm.weight"])


def test_a_list_of_directories_is_averaged_by_their_steps(run, tmp_path):
    found = from_paths([run / "checkpoint-30", run / "checkpoint-10"])
    assert [entry.step for entry in found.entries] == [30, 10]
    execute(make_plan(found, tmp_path / "out"))
    assert_mean(tmp_path / "out", 10, 30)
    assert (tmp_path / "out" / "model-00001-of-00002.safetensors").exists()


def test_a_trainer_state_that_cannot_be_read_is_no_obstacle(run):
    (run / "checkpoint-30" / "trainer_state.json").write_text('{"global_step": 3')
    checkpoint = open_checkpoint(run / "checkpoint-30")
    assert checkpoint.step is None
    assert "trainer_state.json cannot be read" in checkpoint.notes
    assert [entry.step for entry in discover(run).last(3).entries] == [10, 20, 30]


def test_links_in_a_circle_and_directories_of_others_are_no_obstacle(run, tmp_path):
    newest = run / "checkpoint-30"
    for place in (run, newest):
        (place / "circle").symlink_to("circle")
        (place / "up").symlink_to("..")
        (place / "global_step1").symlink_to("nowhere")
    assert open_checkpoint(newest).format == "huggingface"
    assert len(discover(run).entries) == 3
    with pytest.raises(UnsupportedError):
        open_checkpoint(lonely(tmp_path / "lonely"))


def lonely(path):
    path.mkdir()
    (path / "circle").symlink_to("circle")
    return path


def test_a_link_in_the_place_of_a_tokenizer_that_leads_nowhere_is_said(run):
    newest = run / "checkpoint-30"
    (newest / "optimizer.pt").unlink(missing_ok=True)
    (newest / "optimizer.pt").symlink_to("nowhere")
    assert open_checkpoint(newest).format == "huggingface"
    (newest / "special_tokens_map.json").unlink()
    (newest / "special_tokens_map.json").symlink_to("../../blobs/0123")
    with pytest.raises(UnreadableError, match=r"special_tokens_map\.json: a link that leads nowhere") as caught:
        open_checkpoint(newest)
    assert "link" in caught.value.hint


def test_a_directory_that_may_not_be_listed_is_said(run, monkeypatch):
    newest = run / "checkpoint-30"
    scandir = os.scandir

    def refused(place):
        if Path(place) == newest:
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(UnreadableError, match=r"checkpoint-30: cannot be read \(Permission denied\)"):
        open_checkpoint(newest)
    with pytest.raises(UnreadableError, match="Permission denied"):
        format_of_directory(newest)


def test_a_pointer_of_git_lfs_is_called_one(run):
    place = run / "checkpoint-30" / "model-00001-of-00002.safetensors"
    place.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 99\n")
    for path in (place.parent, place):
        with pytest.raises(UnsupportedError) as caught:
            open_checkpoint(path)
        assert "git lfs pull" in caught.value.hint


def test_a_pipe_is_not_waited_for(run):
    place = run / "checkpoint-30" / "model-00001-of-00002.safetensors"
    assert place.is_file()
    place.unlink()
    os.mkfifo(place)
    for path in (place.parent, place):
        with pytest.raises(UnsupportedError, match="a pipe"):
            open_checkpoint(path)


def test_tensors_that_differ_between_members_are_an_error(run):
    folder = run / "checkpoint-10"
    save_file({**weights(10), "extra": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(MismatchError, match="extra"):
        make_plan(discover(run).last(3), f"{run}/avg/")
    execute(make_plan(discover(run).last(3), f"{run}/avg/", policy=Policy(keys="intersection")))
    assert_mean(run / "avg" / "checkpoint-30", 10, 20, 30)


def test_a_shard_that_gets_no_tensor_is_not_written(run):
    only = json.loads((run / "checkpoint-30" / "model.safetensors.index.json").read_text())["weight_map"]
    kept = [name for name, file in only.items() if file.endswith("00001-of-00002.safetensors")]
    save_file({name: weights(10)[name] for name in kept}, run / "checkpoint-10" / "model.safetensors")
    paths = [run / "checkpoint-10", run / "checkpoint-30"]
    execute(make_plan(from_paths(paths), run / "out", policy=Policy(keys="intersection")))
    assert set(load(run / "out")) == set(kept)
    assert len(list((run / "out").glob("*.safetensors"))) == 1


# --- the output directory --------------------------------------------------------------------------------------


def test_an_existing_output_stays_and_force_replaces_only_an_earlier_output(run):
    found = discover(run).last(2)
    execute(make_plan(found, run / "out", policy=Policy(max_shard_size=64)))
    with pytest.raises(OutputExistsError, match="exists already") as caught:
        execute(make_plan(found, run / "out"))
    assert f"With {run / 'out'}/ the output is written into the directory" in caught.value.hint
    execute(make_plan(found, f"{run}/avg/"))
    with pytest.raises(OutputExistsError, match="checkpoint-30: exists already") as caught:
        execute(make_plan(found, f"{run}/avg/"))
    assert caught.value.hint == "force=True replaces the earlier output. Choose another output."
    execute(make_plan(found, run / "out", policy=Policy(force=True)))
    assert len(list((run / "out").glob("*.safetensors"))) == 2
    assert_mean(run / "out", 20, 30)
    (run / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputExistsError, match=r"thesis\.tex"):
        execute(make_plan(found, run / "out", policy=Policy(force=True)))
    (run / "out" / "thesis.tex").unlink()
    (run / "out" / "vocab.extra").write_text("is named like an auxiliary file, but was not copied")
    with pytest.raises(OutputExistsError, match=r"vocab\.extra"):
        execute(make_plan(found, run / "out", policy=Policy(force=True)))
    assert (run / "out" / "vocab.extra").exists()


def test_force_never_replaces_a_directory_that_ckpttool_did_not_write(run):
    shutil.copytree(run / "checkpoint-30", run / "mine")
    with pytest.raises(OutputExistsError, match="not an earlier output"):
        execute(make_plan(discover(run).last(2), run / "mine", policy=Policy(force=True)))
    assert (run / "mine" / "optimizer.pt").exists()


def test_inputs_are_never_outputs_nor_written_into(run):
    found = discover(run).last(3)
    for output in (run / "checkpoint-10", run / "checkpoint-10" / "avg", run, run / "checkpoint-30/model.safetensors"):
        with pytest.raises(OutputExistsError):
            execute(make_plan(found, output, policy=Policy(force=True)))
    assert len(discover(run).last(3).entries) == 3


def test_an_empty_directory_is_filled_and_a_separator_means_into(run):
    found = discover(run).last(2)
    (run / "out").mkdir()
    execute(make_plan(found, run / "out"))
    assert (run / "out" / "config.json").exists()
    execute(make_plan(found, f"{run}/out/"))
    assert (run / "out" / "checkpoint-30" / "config.json").exists()


def test_points_in_a_directory_name_are_no_suffix(run):
    execute(make_plan(discover(run).last(2), run / "llama-3.1-avg"))
    assert (run / "llama-3.1-avg" / "config.json").exists()
    with pytest.raises(UsageError, match="no format is known") as caught:
        make_plan(discover(run).last(2), run / "model.gguf")
    assert "without a suffix" in caught.value.hint


def test_a_failure_leaves_nothing_behind(run, monkeypatch):
    bad = {**weights(30), "norm.weight": torch.full((4,), float("nan"))}
    save_shards(run / "checkpoint-30", bad, 2)
    before = sorted(os.listdir(run))
    with pytest.raises(MismatchError, match=r"NaN|nan|finite"):
        execute(make_plan(discover(run).last(2), f"{run}/avg/"))
    assert sorted(os.listdir(run)) == before


def test_the_same_bytes_whatever_the_order_of_arguments(run, tmp_path):
    paths = [run / "checkpoint-10", run / "checkpoint-20", run / "checkpoint-30"]
    for number, order in enumerate((paths, paths[::-1])):
        average(order, tmp_path / str(number))
    first, second = tmp_path / "0", tmp_path / "1"
    assert sorted(os.listdir(first)) == sorted(os.listdir(second))
    for name in os.listdir(first):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_nothing_found_is_said_with_what_is_there(tmp_path):
    (tmp_path / "notes.md").write_text("")
    with pytest.raises(NotFoundError, match=r"notes\.md"):
        discover(tmp_path)
    with pytest.raises(UnsupportedError, match=r"no checkpoint of a known layout \(it contains notes\.md\)"):
        open_checkpoint(tmp_path)


def test_values_come_out_exact_to_the_last_bit(run):
    average(run, f"{run}/avg/", last=3)
    found = load(run / "avg" / "checkpoint-30")
    for name in NAMES:
        stacked = np.stack([weights(step)[name].numpy().astype(np.float64) for step in (10, 20, 30)])
        assert (stacked.sum(0) / 3).astype(np.float32).tobytes() == found[name].numpy().tobytes()


def test_another_dtype_than_the_configuration_states_is_said(run):
    (run / "checkpoint-30" / "config.json").write_text('{"dtype": "float32"}')
    found = discover(run).last(2)
    assert any("states float32" in note for note in make_plan(found, run / "x", policy=Policy(dtype="float16")).notes)
    assert not any("states" in note for note in make_plan(found, run / "x", policy=Policy(dtype="float32")).notes)
    assert not any("states" in note for note in make_plan(found, run / "x").notes)
