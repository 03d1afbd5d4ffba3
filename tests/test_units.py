"""What the numbers of checkpoints count is known, or said to be unknown; names and contents that disagree are said."""

import pytest
import torch

from ckpttool.errors import NotFoundError, UsageError
from ckpttool.selection.discovery import discover, from_paths
from ckpttool.selection.names import name_numbers, read_series


def save(path, value=0.0, **content):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": {"w": torch.full((4,), float(value))}, **content}, path)
    return path


def save_run(directory, template, numbers, content=lambda _: {}):
    for index, number in enumerate(numbers):
        save(directory / template.format(number), index, **content(number))
    return discover(directory)


def scale(found):
    return found.unit, [entry.step for entry in found.entries]


@pytest.mark.parametrize("template", ["checkpoint-{}.pth", "checkpoint{:04}.pth", "model_{}.pth", "net{}.pt"])
def test_a_number_that_is_the_epoch_inside_is_an_epoch(tmp_path, template):
    """MAE, DETR, torchvision's references."""
    found = save_run(tmp_path, template, (79, 99), lambda epoch: {"epoch": epoch})
    assert scale(found) == ("epoch", [79, 99])


def test_epochs_may_be_counted_from_one_in_the_name_and_from_zero_inside(tmp_path):
    assert scale(save_run(tmp_path, "net_{}.pt", (1, 5, 9), lambda n: {"epoch": n - 1})) == ("epoch", [1, 5, 9])


def test_a_number_that_is_the_step_inside_is_a_step(tmp_path):
    found = save_run(tmp_path, "net_{}.pt", (500, 1000), lambda step: {"global_step": step, "epoch": 1})
    assert scale(found) == ("step", [500, 1000])


@pytest.mark.parametrize(
    "template", ["{:07}.pt", "save{}.pt", "finetune{}.pt", "phase{}.pt", "unit{}.pt", "mamba{}.pt", "model-{}.pt"]
)
def test_nobody_knows_what_a_bare_number_counts(tmp_path, template):
    found = save_run(tmp_path, template, (1000, 2000))
    assert scale(found) == ("number", [1000, 2000])
    assert found.describe() == "2 checkpoints, numbers 1000 to 2000"
    assert "nothing says what the numbers in the names count" in found.between(from_step=1500).notes[0]


def test_the_name_counts_where_it_says_steps_and_the_content_another_number(tmp_path):
    """VITS holds its epoch as the iteration."""
    found = save_run(tmp_path, "G_{}.pth", (1000, 5000), lambda step: {"iteration": step // 400})
    assert scale(found) == ("step", [1000, 5000])
    assert found.warnings == ("G_5000.pth: its name says step 5000, its content step 12; the steps in the names count",)


def test_a_bare_number_larger_than_the_step_inside_is_not_taken_for_either(tmp_path):
    found = save_run(tmp_path, "gen-{}.pth", (1000, 5000), lambda step: {"iteration": step // 400})
    assert scale(found) == ("number", [1000, 5000])
    assert "its name says 1000, its content step 2" in found.warnings[0]


def test_steps_inside_count_before_numbers_that_are_smaller_and_that_is_said(tmp_path):
    """denoising-diffusion-pytorch counts milestones."""
    found = save_run(tmp_path, "model-{}.pt", (1, 2, 3), lambda number: {"step": number * 1000})
    assert scale(found) == ("step", [1000, 2000, 3000])
    assert found.notes == (
        "the steps that the files state count, not the numbers in the names: model-3.pt states step 3000",
    )


def test_steps_that_count_within_the_epoch_are_not_those_of_the_run(tmp_path):
    """FunASR holds both."""
    for name, epoch, step in (("model.pt.ep1", 1, 40), ("model.pt.ep2.20", 2, 20), ("model.pt.ep2", 2, 40)):
        save(tmp_path / name, epoch=epoch, step=step, batch_total=(epoch - 1) * 40 + step)
    found = discover(tmp_path)
    assert ([entry.name for entry in found.entries], scale(found)) == (
        ["model.pt.ep1", "model.pt.ep2.20", "model.pt.ep2"],
        ("step", [40, 60, 80]),
    )


def test_an_epoch_inside_that_is_not_the_one_in_the_name_is_a_warning(tmp_path):
    found = save_run(tmp_path, "epoch_{}.pth", (1, 2, 3), lambda epoch: {"epoch": 9 if epoch == 2 else epoch})
    assert "epoch_2.pth: its name says epoch 2, its content epoch 9" in found.last(3).warnings


def test_thousands_are_counted(tmp_path):
    assert scale(save_run(tmp_path / "a", "step_{}.ckpt", ("10k", "2k", "500"))) == ("step", [500, 2000, 10000])
    assert scale(save_run(tmp_path / "b", "model-{}.pt", ("1k", "2.5k", "10k", "1M"))) == (
        "number",
        [1000, 2500, 10000, 1000000],
    )


SCHEMES = {
    # Names as trainers write them, each with the unit of their numbers.
    "Kohya sd-scripts, steps": (["my-lora-step00000500.safetensors", "my-lora-step00001000.safetensors"], "step"),
    "Kohya sd-scripts, epochs": (["my-lora-000001.safetensors", "my-lora-000002.safetensors"], "number"),
    "GPT-SoVITS SoVITS": (["voice_e4_s120.pth", "voice_e8_s240.pth"], "step"),
    "GPT-SoVITS GPT": (["voice-e5.ckpt", "voice-e10.ckpt"], "epoch"),
    "RVC": (["singer_e100_s5000.pth", "singer_e200_s10000.pth"], "step"),
    "so-vits-svc diffusion": (["model_2000.pt", "model_4000.pt"], "number"),
    "F5-TTS": (["model_50000.pt", "model_100000.pt", "model_1200000.pt"], "number"),
    "F5-TTS, safetensors": (["model_1200000.safetensors", "model_1250000.safetensors"], "number"),
    "RWKV-LM": (["rwkv-0.pth", "rwkv-10.pth"], "number"),
    "Stable Baselines 3": (["rl_model_500000_steps.pt", "rl_model_1000000_steps.pt"], "step"),
    "BasicSR": (["net_g_5000.pth", "net_g_10000.pth"], "number"),
    "KAIR": (["5000_G.pth", "10000_G.pth"], "number"),
    "pytorch-CycleGAN-and-pix2pix": (["5_net_G.pth", "10_net_G.pth"], "number"),
    "nerfstudio": (["step-000002000.ckpt", "step-000029999.ckpt"], "step"),
    "gaussian splatting": (["chkpnt7000.pth", "chkpnt30000.pth"], "number"),
    "minGPT run": (["ckpt_iter_1000.pt", "ckpt_iter_2000.pt"], "step"),
    "Tacotron 2": (["checkpoint_1000", "checkpoint_2000"], "step"),
    "WaveGlow": (["waveglow_1000", "waveglow_2000"], "step"),
    "Parallel WaveGAN": (["checkpoint-10000steps.pkl", "checkpoint-20000steps.pkl"], "step"),
    "YOLOX": (["epoch_10_ckpt.pth", "epoch_20_ckpt.pth"], "epoch"),
    "YOLOv7": (["epoch_024.pt", "epoch_049.pt"], "epoch"),
    "SSD": (["ssd300_VOC_5000.pth", "ssd300_VOC_10000.pth"], "number"),
    "Keras": (["weights.05-0.32.npz", "weights.10-0.28.npz"], "number"),
    "Lightning without names": (["epoch=4-val_acc=1-v1.ckpt", "epoch=9-val_acc=0-v1.ckpt"], "epoch"),
    "lucidrains": (["model.100.pt", "model.200.pt"], "number"),
    "taming and latent diffusion": (["epoch=000004.ckpt", "epoch=000009.ckpt"], "epoch"),
    "latent diffusion, train steps": (["step=000009999.ckpt", "step=000019999.ckpt"], "step"),
    "CLIP-ReID": (["ViT-B-16_60.pth", "ViT-B-16_120.pth"], "number"),
    "a date": (["net_20240109_101500.pt", "net_20240110_091500.pt"], "date"),
    "a date and a step": (["2024-01-09_net_200.pt", "2024-01-10_net_300.pt"], "number"),
    "a metric that is a whole number": (["net_5_acc=90.pt", "net_6_acc=91.pt"], "number"),
    "a run behind the step": (["ckpt_e1_s500_run7.pt", "ckpt_e2_s900_run7.pt"], "step"),
    "a size behind the number": (["ckpt_100_512px.pt", "ckpt_200_512px.pt"], "number"),
    "updates": (["agent-update250.pt", "agent-update500.pt"], "step"),
    "epochs behind": (["model_10epochs.pth", "model_20epochs.pth"], "epoch"),
    "camel case": (["ModelEpoch9.pth", "ModelEpoch10.pth"], "epoch"),
    "NequIP": (["ckpt9.pth", "ckpt10.pth"], "number"),
    "Real-ESRGAN": (["net_g_ema_5000.pth", "net_g_ema_10000.pth"], "number"),
    "Silero": (["vad_it100.pt", "vad_it200.pt"], "step"),
    "Piper": (["epoch=2163-step=1355120.ckpt", "epoch=2164-step=1355540.ckpt"], "step"),
    "stable-audio-tools": (["epoch=0-step=5000.ckpt", "epoch=1-step=10000.ckpt"], "step"),
    "MuZero": (["model.ckpt_100.pt", "model.ckpt_200.pt"], "number"),
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_names_of_trainers_are_ordered_and_their_unit_is_known_or_not(tmp_path, scheme):
    names, unit = SCHEMES[scheme]
    for index, name in enumerate(reversed(names)):
        save(tmp_path / name, index)
    found = discover(tmp_path)
    assert ([entry.name for entry in found.entries], found.unit) == (names, unit)


@pytest.mark.parametrize("template", ["fold{}.pt", "seed_{}.pth", "model-run{}.safetensors"])
def test_files_of_several_runs_are_not_checkpoints_of_one(tmp_path, template):
    with pytest.raises(NotFoundError):
        save_run(tmp_path, template, (1, 2, 3))


def test_the_number_that_differs_between_the_names_orders_them():
    assert {name: named.number for name, named in read_series(["a_1_x_7.pt", "a_2_x_7.pt"]).items()} == {
        "a_1_x_7.pt": 1,
        "a_2_x_7.pt": 2,
    }
    # Both differ: the last one that tells all of them apart.
    series = read_series(["a_10_0.pt", "a_20_1.pt", "a_30_0.pt"])
    assert [named.number for named in series.values()] == [10, 20, 30]


@pytest.mark.parametrize(
    ("name", "step", "epoch"),
    [
        ("save1000.pt", None, None),
        ("ckpt_e1_s500_run7.pt", 500, 1),
        ("step_10k.ckpt", 10000, None),
        ("9epoch.pth", None, 9),
        ("model_500000_steps.zip", 500000, None),
        ("model-3b-step7.pt", 7, None),
    ],
)
def test_a_lone_name_is_read_by_the_words_next_to_its_numbers(name, step, epoch):
    named = name_numbers(name)
    assert (named.step, named.epoch) == (step, epoch)


# --- lists -----------------------------------------------------------------------------------------------------


def test_a_list_by_a_shell_glob_is_named_and_numbered_by_its_directories(tmp_path):
    paths = [save(tmp_path / f"checkpoint-{step}" / "pytorch_model.bin", step) for step in (1000, 1500, 500)]
    found = from_paths(paths)
    assert scale(found) == ("step", [1000, 1500, 500])
    assert [entry.name for entry in found.entries] == [f"checkpoint-{n}/pytorch_model.bin" for n in (1000, 1500, 500)]


def test_a_list_gets_the_steps_that_its_directory_gets(tmp_path):
    paths = [save(tmp_path / f"noddp_{step}.pth", step) for step in (1000, 500)]
    assert scale(discover(tmp_path)) == ("number", [500, 1000])
    assert scale(from_paths(paths)) == ("number", [1000, 500])


def test_directories_that_are_runs_do_not_number_a_list(tmp_path):
    paths = [save(tmp_path / name / "model.pt") for name in ("bs32", "bs16")]
    assert scale(from_paths(paths)) == ("step", [None, None])


# --- the best, and guesses that are overruled ------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ["best_model_3_val_acc=0.7012.pt", "best_model_5_val_acc=0.7100.pt"],  # Ignite
        ["best_model_60.pth", "best_model_120.pth"],  # Coqui
    ],
)
def test_best_models_that_are_not_there_twice_are_checkpoints(tmp_path, names):
    for index, name in enumerate(names):
        save(tmp_path / name, index)
    assert [entry.name for entry in discover(tmp_path).entries] == names


def test_include_overrules_every_guess(tmp_path):
    for number in (10, 20):
        save(tmp_path / f"checkpoint_{number}.pth", number, step=number)
    for number in (12, 18):
        save(tmp_path / f"best_model_{number}.pth", number, step=number)
    for number in (1, 2):
        save(tmp_path / f"swa_{number}.pth", number)
    assert [entry.step for entry in discover(tmp_path).entries] == [10, 20]
    assert [entry.name for entry in discover(tmp_path, include=["best_model_*"]).entries] == [
        "best_model_12.pth",
        "best_model_18.pth",
    ]
    assert len(discover(tmp_path, include=["swa_*"])) == 2
    both = discover(tmp_path, include=["checkpoint_*", "best_model_*"])
    assert [entry.step for entry in both.entries] == [10, 12, 18, 20]
    assert [entry.step for entry in discover(tmp_path, include=["*"]).entries] == [10, 20]
    reason = {each.path.name: each.reason for each in discover(tmp_path).skipped}["best_model_18.pth"]
    assert reason == "a best checkpoint that has no other name here; include='best_model_18.pth' takes it (step 18)"


# --- answers ---------------------------------------------------------------------------------------------------


def test_too_few_after_every_says_how_many_there_were_and_what_to_ask_for(tmp_path):
    found = save_run(tmp_path, "m_step_{}.pt", range(100, 700, 100))
    with pytest.raises(
        NotFoundError, match="only 1 checkpoint, step 600 of the 6 that there are without every"
    ) as said:
        found.every(10).last(3)
    assert said.value.hint == "Ask for every=2, or for last=1."
    assert len(found.every(2).last(3)) == 3
    with pytest.raises(NotFoundError, match="of the 6 that there are without from_step") as said:
        found.between(from_step=500).last(3)
    assert said.value.hint == "Widen the bounds, or ask for last=2."


def test_bounds_the_wrong_way_round_are_turned_round(tmp_path):
    with pytest.raises(UsageError) as said:
        save_run(tmp_path, "m_step_{}.pt", (1, 2)).between(5, 3)
    assert said.value.hint == "Did you mean from_step=3 to_step=5?"


def test_a_pattern_in_quotes_is_answered_as_one(tmp_path):
    save_run(tmp_path, "model_epoch{}.pt", (5, 6))
    for ask in (discover, lambda path: from_paths([path])):
        with pytest.raises(NotFoundError) as said:
            ask(tmp_path / "model_epoch*.pt")
        assert said.value.hint is not None
        assert "2 names match this pattern, which is not expanded in quotes" in said.value.hint
        assert "include='model_epoch*.pt'" in said.value.hint


@pytest.mark.parametrize("address", ["s3://bucket/run", "gs://bucket/run/model.pt", "https://host/model.pt"])
def test_an_address_is_answered_with_a_sentence(address):
    for ask in (discover, lambda path: from_paths([path])):
        with pytest.raises(Exception, match="only files and mounted directories are read") as said:
            ask(address)
        assert "Copy it here first" in said.value.hint


def test_a_link_that_leads_nowhere_is_called_one(tmp_path):
    (tmp_path / "last.pt").symlink_to("gone.pt")
    for ask in (discover, lambda path: from_paths([path])):
        with pytest.raises(NotFoundError, match=r"last\.pt: a symbolic link that leads nowhere"):
            ask(tmp_path / "last.pt")
