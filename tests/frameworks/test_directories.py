"""transformers, PEFT, accelerate, diffusers and SpeechBrain load what ckpttool makes of what they have saved."""

from __future__ import annotations

import importlib.util
import json
import os

import pytest
import torch
from absent import stand_in

from ckpttool import average
from ckpttool.engine.run import execute
from ckpttool.planning.planner import make_plan
from ckpttool.planning.request import Policy
from ckpttool.selection.discovery import discover

stand_in("torchaudio")


def needs(*names):
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} is not installed")


def assert_mean(found, states):
    assert all(found.keys() == state.keys() for state in states)
    for name, tensor in found.items():
        expected = sum(state[name].double() for state in states) / len(states)
        assert torch.equal(tensor, expected.to(tensor.dtype) if tensor.is_floating_point() else states[-1][name]), name


def gpt2(seed):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=64, n_positions=16, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config)


@needs("transformers")
@pytest.mark.parametrize("sizes", [("1GB", "8KB", "12KB"), ("8KB", "12KB", "1GB"), ("1GB", "1GB", "1GB")])
@pytest.mark.parametrize("limit", [None, 9000, 10**9])
def test_from_pretrained_loads_the_mean_of_shards(tmp_path, sizes, limit):
    from transformers import GPT2LMHeadModel

    models = [gpt2(seed) for seed in range(3)]
    for step, (model, size) in enumerate(zip(models, sizes, strict=True), 1):
        model.save_pretrained(tmp_path / f"checkpoint-{step}", max_shard_size=size)
    execute(make_plan(discover(tmp_path).last(3), f"{tmp_path}/avg/", policy=Policy(max_shard_size=limit)))
    loaded, report = GPT2LMHeadModel.from_pretrained(tmp_path / "avg" / "checkpoint-3", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert_mean(loaded.state_dict(), [model.state_dict() for model in models])
    assert loaded.lm_head.weight.data_ptr() == loaded.transformer.wte.weight.data_ptr()


@needs("transformers")
def test_our_shards_are_those_of_save_pretrained(tmp_path):
    for step in (1, 2):
        gpt2(step).save_pretrained(tmp_path / f"checkpoint-{step}", max_shard_size="8KB")
    average(tmp_path, f"{tmp_path}/avg/", last=2)
    own = tmp_path / "checkpoint-2" / "model.safetensors.index.json"
    assert (tmp_path / "avg" / "checkpoint-2" / own.name).read_text() == own.read_text()


@needs("transformers")
def test_variants_are_loaded_by_their_name(tmp_path):
    from transformers import GPT2LMHeadModel

    models = [gpt2(seed).to(torch.bfloat16) for seed in range(2)]
    for step, model in enumerate(models, 1):
        model.save_pretrained(tmp_path / f"checkpoint-{step}", max_shard_size="8KB", variant="bf16")
    average(tmp_path, f"{tmp_path}/avg/", last=2)
    loaded = GPT2LMHeadModel.from_pretrained(tmp_path / "avg" / "checkpoint-2", variant="bf16", dtype=torch.bfloat16)
    assert_mean(loaded.state_dict(), [model.state_dict() for model in models])


@needs("transformers")
def test_an_encoder_decoder_with_three_names_for_one_tensor(tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=64, decoder_start_token_id=0)
    models = []
    for step in (1, 2):
        torch.manual_seed(step)
        models.append(T5ForConditionalGeneration(config))
        models[-1].save_pretrained(tmp_path / f"checkpoint-{step}", max_shard_size="10KB")
    average(tmp_path, f"{tmp_path}/avg/", last=2)
    loaded = T5ForConditionalGeneration.from_pretrained(tmp_path / "avg" / "checkpoint-2")
    assert_mean(loaded.state_dict(), [model.state_dict() for model in models])


@needs("transformers", "accelerate")
def test_a_run_of_the_trainer(tmp_path):
    from transformers import GPT2LMHeadModel, Trainer, TrainingArguments

    arguments = TrainingArguments(
        tmp_path / "run",
        max_steps=6,
        save_steps=2,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        learning_rate=0.1,
        disable_tqdm=True,
        logging_steps=1,
    )
    rows = [{"input_ids": torch.randint(64, (8,)), "labels": torch.randint(64, (8,))} for _ in range(8)]
    Trainer(gpt2(0), arguments, train_dataset=rows).train()
    found = discover(tmp_path / "run")
    assert (found.layout, [entry.step for entry in found.entries]) == ("huggingface", [2, 4, 6])
    assert [entry.checkpoint.step for entry in found.entries] == [2, 4, 6]
    plan = make_plan(found.last(3), f"{tmp_path}/run/avg/")
    execute(plan)
    output = tmp_path / "run" / "avg" / "checkpoint-6"
    assert sorted(os.listdir(output)) == ["config.json", "generation_config.json", "model.safetensors"]
    states = [GPT2LMHeadModel.from_pretrained(entry.path).state_dict() for entry in found.entries]
    assert not torch.equal(states[0]["lm_head.weight"], states[2]["lm_head.weight"])
    assert_mean(GPT2LMHeadModel.from_pretrained(output).state_dict(), states)


@needs("transformers", "peft")
def test_adapters_of_peft(tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict

    states = []
    for step in (1, 2):
        model = get_peft_model(gpt2(0), LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True))
        torch.manual_seed(step)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter)
        model.save_pretrained(tmp_path / f"checkpoint-{step}")
        states.append({name: tensor.clone() for name, tensor in get_peft_model_state_dict(model).items()})
    average(tmp_path, f"{tmp_path}/avg/", last=2)
    loaded = PeftModel.from_pretrained(gpt2(0), tmp_path / "avg" / "checkpoint-2")
    assert_mean(get_peft_model_state_dict(loaded), states)


@needs("diffusers")
def test_a_unet_and_its_moving_average(tmp_path):
    from diffusers import UNet2DModel
    from diffusers.training_utils import EMAModel

    def unet(seed):
        torch.manual_seed(seed)
        return UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
        )

    raw, smooth = [], []
    for step in (1, 2):
        folder = tmp_path / f"checkpoint-{step}"
        raw.append(unet(step))
        smooth.append(unet(step + 10))
        raw[-1].save_pretrained(folder / "unet")
        ema = EMAModel(smooth[-1].parameters(), model_cls=UNet2DModel, model_config=smooth[-1].config)
        ema.save_pretrained(folder / "unet_ema")
    average(tmp_path, f"{tmp_path}/avg/", last=2)
    output = tmp_path / "avg" / "checkpoint-2"
    assert_mean(UNet2DModel.from_pretrained(output / "unet").state_dict(), [each.state_dict() for each in raw])
    loaded = EMAModel.from_pretrained(output / "unet_ema", UNet2DModel)
    for index, parameter in enumerate(loaded.shadow_params):
        both = [list(each.parameters())[index].double() for each in smooth]
        assert torch.equal(parameter, (sum(both) / 2).float())


@needs("speechbrain", "torchaudio")
def test_a_checkpointer_of_speechbrain(tmp_path):
    from speechbrain.nnet.schedulers import NoamScheduler
    from speechbrain.processing.features import InputNormalization
    from speechbrain.utils.checkpoints import Checkpointer
    from speechbrain.utils.epoch_loop import EpochCounter

    def recoverables(seed):
        torch.manual_seed(seed)
        return {
            "model": torch.nn.Linear(4, 3),
            "scheduler": NoamScheduler(1.0, 10),
            "normalizer": InputNormalization(norm_type="global"),
            "counter": EpochCounter(10),
        }

    models = []
    for epoch in (1, 2):
        objects = recoverables(epoch)
        objects["counter"].current = epoch
        objects["normalizer"](torch.randn(2, 5, 4), torch.ones(2), epoch=0)
        saver = Checkpointer(tmp_path, recoverables=objects)
        saver.add_recoverable("optimizer", torch.optim.Adam(objects["model"].parameters()))
        saver.save_checkpoint(meta={"WER": 1 / epoch}, name=f"2024-01-0{epoch}+10-00-00+00")
        models.append(objects["model"].state_dict())
    found = discover(tmp_path)
    assert (found.layout, len(found.entries)) == ("speechbrain", 2)
    execute(make_plan(found.last(2), f"{tmp_path}/avg/"))
    objects = recoverables(9)
    loaded = Checkpointer(tmp_path / "avg", recoverables=objects).recover_if_possible()
    assert loaded is not None
    assert_mean(objects["model"].state_dict(), models)
    assert objects["counter"].current == 2


@needs("transformers")
def test_the_index_of_the_split_is_that_of_huggingface_hub(tmp_path):
    from huggingface_hub import split_torch_state_dict_into_shards

    for step in (1, 2):
        gpt2(step).save_pretrained(tmp_path / f"checkpoint-{step}")
    plan = make_plan(discover(tmp_path).last(2), tmp_path / "out", policy=Policy(max_shard_size=7000))
    execute(plan)
    tensors = {name: torch.empty(tensor.shape) for (_, name), tensor in plan.artifact.tensors.items()}
    expected = split_torch_state_dict_into_shards(
        tensors, max_shard_size=7000, filename_pattern="model{suffix}.safetensors"
    )
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == expected.tensor_to_filename
    assert index["metadata"]["total_size"] == expected.metadata["total_size"]
