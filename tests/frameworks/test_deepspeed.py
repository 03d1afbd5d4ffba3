"""DeepSpeed: what its ZeRO optimizers save, averaged as it is, against its own conversion of each checkpoint.

Each run trains in processes of its own, as DeepSpeed wants it: this file is their program as well.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

STEPS = (3, 6, 9)


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(7, 5)
        self.norm = torch.nn.LayerNorm(5)
        self.hidden = torch.nn.Linear(5, 3)
        self.frozen = torch.nn.Linear(3, 3).requires_grad_(False)
        self.output = torch.nn.Linear(5, 7, bias=False)
        self.output.weight = self.embedding.weight
        self.register_buffer("mean", torch.zeros(5))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("not_saved", torch.ones(2), persistent=False)

    def forward(self, tokens):
        found = self.norm(self.embedding(tokens))
        self.mean.add_(found.detach().mean(0))
        self.count.add_(1)
        return self.frozen(self.hidden(found)).square().mean() + self.output(found).square().mean()


def train(directory, settings):
    """The program of each process."""
    import deepspeed

    torch.manual_seed(0)
    model = Model()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [each for each in trained if each.ndim > 1], "weight_decay": 0.1},
        {"params": [each for each in trained if each.ndim <= 1], "weight_decay": 0.0},
    ]
    engine, *_ = deepspeed.initialize(model=model, model_parameters=groups, config=settings)
    for step in range(1, STEPS[-1] + 1):
        engine.backward(engine(torch.randint(0, 7, (4,))))
        engine.step()
        if step in STEPS:
            engine.save_checkpoint(directory, tag=f"global_step{step}")
    torch.distributed.destroy_process_group()


def train_with_transformers(directory, settings):
    """The same with the Trainer, which saves directories of its own around DeepSpeed's."""
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    more = {"per_device_train_batch_size": 2, "bf16": True, "use_cpu": True, "report_to": []}
    arguments = TrainingArguments(directory, deepspeed=settings, max_steps=6, save_steps=2, **more)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=60, tie_word_embeddings=True, **shape))
    rows = torch.randint(0, 60, (40, 12), generator=torch.Generator().manual_seed(0))
    Trainer(model=model, args=arguments, train_dataset=[{"input_ids": row, "labels": row} for row in rows]).train()


if __name__ == "__main__":
    {"deepspeed": train, "transformers": train_with_transformers}[sys.argv[1]](sys.argv[2], json.loads(sys.argv[3]))
    sys.exit()

pytest.importorskip("deepspeed")
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from safetensors.torch import load_file

RUNS = {
    "zero1-2ranks": (1, 2, {"bf16": {"enabled": True}}),
    "zero2-1rank": (2, 1, {"bf16": {"enabled": True}}),
    "zero2-3ranks": (2, 3, {"bf16": {"enabled": True}}),
    "zero3-1rank": (3, 1, {"bf16": {"enabled": True}}),
    "zero3-2ranks": (3, 2, {"bf16": {"enabled": True}}),
    "zero3-3ranks-float32": (3, 3, {}),
}


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A run of each kind: name to model directory."""
    directory = tmp_path_factory.mktemp("deepspeed")
    for name, (stage, ranks, more) in RUNS.items():
        settings = {
            "train_micro_batch_size_per_gpu": 4,
            "optimizer": {"type": "AdamW", "params": {"lr": 0.02, "torch_adam": True}},
            # Small enough that the parameters are in several flat tensors, and none is kept whole.
            "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0, "sub_group_size": 20},
            **more,
        }
        launch("deepspeed", ranks, directory / name, settings)
    return directory


def launch(program, ranks, directory, settings):
    """Train in so many processes."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    subprocess.run(
        [*torchrun, __file__, program, str(directory), json.dumps(settings)],
        env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=300,
    )


def converted(run, step, stage):
    """What DeepSpeed's own converter makes of a checkpoint, and what it forgets of ZeRO-1: what is frozen."""
    found = get_fp32_state_dict_from_zero_checkpoint(str(run), tag=f"global_step{step}")
    if stage == 1:
        model = torch.load(run / f"global_step{step}" / "mp_rank_00_model_states.pt", weights_only=False)["module"]
        found.update({name: model[name] for name in model if name.startswith("frozen.")})
    return found


def as_sets(states, names):
    """Tensors in the order of `names`."""
    return {name: states[name] for name in names}


@pytest.mark.parametrize("name", RUNS)
def test_one_checkpoint_is_what_the_converter_makes_of_it(average, same, runs, tmp_path, name):
    wanted = converted(runs / name, 9, RUNS[name][0])
    average(runs / name, "--last", 1, "--section", "fp32", "-o", tmp_path / "x.safetensors")
    ours = load_file(tmp_path / "x.safetensors")
    tied = ours.setdefault("output.weight", ours["embedding.weight"])
    assert torch.equal(ours.setdefault("embedding.weight", tied), tied)
    same(as_sets(ours, sorted(ours)), as_sets(wanted, sorted(wanted)))


@pytest.mark.parametrize("name", RUNS)
def test_the_average_is_the_mean_of_the_converted(average, mean, same, runs, tmp_path, name):
    wanted = mean([converted(runs / name, step, RUNS[name][0]) for step in STEPS[1:]])
    section = () if "zero3" in name else ("--section", "fp32")
    said = average(runs / name, "--last", 2, *section, "-o", tmp_path / "out")
    assert (said.names, said.steps) == (["global_step6", "global_step9"], [6, 9])
    ours = torch.load(said.output / "pytorch_model.bin")
    assert ours["output.weight"].data_ptr() == ours["embedding.weight"].data_ptr()
    same(as_sets(ours, sorted(ours)), as_sets(wanted, sorted(wanted)))
    Model().load_state_dict(ours)


def test_members_may_be_of_other_stages_and_other_numbers_of_ranks(average, mean, same, runs, tmp_path):
    names = ["zero1-2ranks", "zero2-3ranks", "zero3-2ranks"]
    wanted = mean([converted(runs / name, 9, RUNS[name][0]) for name in names])
    paths = [runs / name / "global_step9" for name in names]
    said = average(*paths, "--section", "fp32", "-o", tmp_path / "x.pt")
    ours = torch.load(said.output)
    same(as_sets(ours, sorted(ours)), as_sets(wanted, sorted(wanted)))


def test_without_the_section_zero_2_averages_what_it_trains_with(average, runs, mean, same):
    run = runs / "zero2-1rank"
    said = average(run, "--last", 2)
    assert said.output == run / "avg-last-2" / "global_step9"
    name = "mp_rank_00_model_states.pt"
    members = [torch.load(run / f"global_step{step}" / name, weights_only=False)["module"] for step in STEPS[1:]]
    same(torch.load(said.output / name, weights_only=False)["module"], mean(members))


def test_a_second_run_finds_the_same_members(average, runs):
    run = runs / "zero3-1rank"
    first = average(run, "--last", 2)
    assert first.output == run / "avg-last-2" / "global_step9"
    assert [path.name for path in Path(first.output).iterdir()] == ["pytorch_model.bin"]
    assert average(run, "--last", 2, "--force").names == first.names


@pytest.mark.parametrize("gathers", [True, False], ids=["with 16-bit weights", "alone"])
def test_transformers_loads_the_average_of_the_trainers_directories(average, mean, tmp_path, gathers):
    transformers = pytest.importorskip("transformers")
    settings = {
        "train_micro_batch_size_per_gpu": "auto",
        "bf16": {"enabled": True},
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "torch_adam": True}},
        "zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": gathers},
    }
    run = tmp_path / "run"
    launch("transformers", 2, run, settings)
    said = average(run, "--last", 2, *(("--section", "fp32") if gathers else ()))
    assert said.names == ["checkpoint-4", "checkpoint-6"]
    names = {path.name for path in said.output.iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors"}
    wanted = mean([get_fp32_state_dict_from_zero_checkpoint(str(run / name)) for name in said.names])
    model, told = transformers.AutoModelForCausalLM.from_pretrained(
        said.output, dtype=torch.float32, output_loading_info=True
    )
    assert not any(told.values())
    ours = model.state_dict()
    assert ours.keys() == wanted.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in wanted.items())
    assert average(run, "--last", 2, *(("--section", "fp32") if gathers else ()), "--force").names == said.names
