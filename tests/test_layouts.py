"""Every row of the table reads its framework's directory: entries in order, aliases and ignored with a reason."""

import pytest
from counting import count_calls
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpttool.errors import NotFoundError, UsageError
from ckpttool.run_layouts import LAYOUTS
from ckpttool.selection.detection import classify, detect
from ckpttool.selection.names import name_numbers

HF = ("model.safetensors", "config.json", "optimizer.pt", "trainer_state.json")

# layout: (entries as name -> (step, epoch) or a bare number, other names that are left out with a reason, inside of a
# directory entry)
EXAMPLES = {
    "fairseq": (
        {"checkpoint9.pt": (None, 9), "checkpoint10.pt": (None, 10), "checkpoint_3_2500.pt": (2500, 3)},
        ["checkpoint_best.pt", "checkpoint_last.pt", "checkpoint.best_bleu_28.3512.pt", "checkpoint9-shard1.pt"],
        None,
    ),
    "opennmt-py": ({"m_step_900.pt": (900, None), "m_step_1000.pt": (1000, None)}, ["avg_step_1000.pt"], None),
    "eole": (
        {"step_900": (900, None), "step_10000": (10000, None)},
        ["model.00.safetensors"],
        ("model.00.safetensors", "config.json", "vocab.json", "optimizer.pt"),
    ),
    "opennmt-tf": (
        {"ckpt-900.index": 900, "ckpt-1000.index": 1000},
        ["ckpt-900.data-00000-of-00001"],
        None,
    ),
    "tensor2tensor": (
        {"model.ckpt-900.index": (900, None), "model.ckpt-1000.index": (1000, None)},
        ["model.ckpt-1100_temp_8f3a.index", "model.ckpt-900.meta"],
        None,
    ),
    "sockeye": ({"params.00009": 9, "params.00010": 10}, ["params.best", "training_state"], None),
    "marian": (
        {"model.iter9000.npz": (9000, None), "model.iter10000.npz": (10000, None)},
        ["model.npz", "model.best-bleu.npz", "model.npz.optimizer.npz"],
        None,
    ),
    "joeynmt": ({"900.ckpt": 900, "1000.ckpt": 1000}, ["latest.ckpt", "best.ckpt"], None),
    "thumt": ({"model-900.pt": 900, "model-1000.pt": 1000}, ["average-0.pt"], None),
    "espnet1": (
        {"snapshot.ep.9": (None, 9), "snapshot.ep.10": (None, 10)},
        ["model.acc.best", "model.last10.avg.best"],
        None,
    ),
    "espnet2": (
        {"9epoch.pth": (None, 9), "10epoch.pth": (None, 10)},
        ["latest.pth", "valid.acc.best.pth", "valid.acc.ave_10best.pth", "valid.acc.ave.pth", "checkpoint.pth"],
        None,
    ),
    "wenet": ({"epoch_9.pt": (None, 9), "epoch_10.pt": (None, 10)}, ["init.pt", "final.pt", "avg_5.pt"], None),
    "hifi-gan": (
        {"g_00000900": (900, None), "g_00001000": (1000, None)},
        ["do_00000900", "do_00001000"],
        None,
    ),
    "vits": ({"G_900.pth": (900, None), "G_1000.pth": (1000, None)}, ["D_900.pth", "DUR_1000.pth"], None),
    "tacotron2": ({"checkpoint_900": (900, None), "checkpoint_1000": (1000, None)}, [], None),
    "styletts2": ({"epoch_2nd_00009.pth": (None, 9), "epoch_2nd_00010.pth": (None, 10)}, [], None),
    "litgpt": (
        {"step-00000900": (900, None), "step-00001000": (1000, None)},
        [],
        ("lit_model.pth", "model_config.yaml", "tokenizer.json"),
    ),
    "torchvision": ({"model_9.pth": (None, 9), "model_10.pth": (None, 10)}, ["checkpoint.pth"], None),
    "fastai": ({"model_9.pth": (None, 9), "model_10.pth": (None, 10)}, ["model.pth"], None),
    "wespeaker": (
        {"model_9.pt": 9, "model_10.pt": 10},
        ["avg_model.pt", "final_model.pt", "convert_model.pt"],
        None,
    ),
    "paddlespeech": ({"9.pdparams": (None, 9), "10.pdparams": (None, 10)}, ["avg_5.pdparams"], None),
    "funasr": (
        {"model.pt.ep9": (None, 9), "model.pt.ep10.500": (None, 10)},
        ["model.pt", "model.pt.best", "model.pt.avg10"],
        None,
    ),
    "icefall": (
        {"epoch-9.pt": (None, 9), "epoch-10.pt": (None, 10), "checkpoint-4000.pt": (4000, None)},
        ["best-train-loss.pt", "best-valid-loss.pt", "epoch-28-avg-15.pt", "iter-4000-avg-2.pt"],
        None,
    ),
    "speechbrain": (
        {"CKPT+2024-01-09+10-00-00+00": (None, None), "CKPT+2024-01-10+09-00-00+00": (None, None)},
        [],
        ("CKPT.yaml", "model.ckpt", "optimizer.ckpt"),
    ),
    "huggingface": (
        {"checkpoint-500": (500, None), "checkpoint-1000": (1000, None)},
        ["model.safetensors", "checkpoint-500-merged", "tmp-checkpoint-1500", "training_args.bin"],
        HF,
    ),
    "diffusers": (
        {"checkpoint-500": (500, None), "checkpoint-1000": (1000, None)},
        [],
        ("unet", "unet_ema", "optimizer.bin"),
    ),
    "lightning": (
        {
            "epoch=9-step=900.ckpt": (900, 9),
            "epoch=10-step=1000.ckpt": (1000, 10),
            "best-epoch=11-val_loss=0.31-step=1100.ckpt": (1100, 11),
            "step=1200.ckpt": (1200, None),
        },
        ["last.ckpt", "last-v1.ckpt"],
        None,
    ),
    "nemo": (
        {"asr--val_wer=0.1234-epoch=9.ckpt": (None, 9), "asr--val_wer=0.1-epoch=10-step=900.ckpt": (900, 10)},
        ["asr--val_wer=0.1-epoch=10-last.ckpt", "asr--val_wer=0.1-epoch=10-EMA.ckpt", "asr-averaged.nemo"],
        None,
    ),
    "megatron": ({"iter_0000900": (900, None), "iter_0001000": (1000, None)}, ["release"], (".metadata", "common.pt")),
    "deepspeed": (
        {"global_step900": (900, None), "global_step1000": (1000, None)},
        [],
        ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"),
    ),
    "torchtitan": ({"step-900": (900, None), "step-1000": (1000, None)}, [], (".metadata", "__0_0.distcp")),
    "torchtune": ({"epoch_0": (None, 0), "epoch_1": (None, 1)}, ["recipe_state"], ("model.safetensors", "config.json")),
    "olmo-core": (
        {"step900": (900, None), "step1000": (1000, None)},
        ["step1000-merged"],
        ("model_and_optim", "model_and_optim/.metadata", "train"),
    ),
    "lightning-sharded": (
        {"epoch=0-step=900.ckpt": (900, 0), "epoch=1-step=1000.ckpt": (1000, 1)},
        ["last.ckpt"],
        (".metadata", "__0_0.distcp", "meta.pt"),
    ),
    "dcp": ({"ckpt-900": 900, "ckpt-1000": 1000}, [], (".metadata", "__0_0.distcp")),
    "olmo": ({"step900-unsharded": (900, None), "step1000": (1000, None)}, ["latest"], ("model.pt", "optim.pt")),
    "fairseq2": ({"step_900": (900, None), "step_1000": (1000, None)}, ["step_1100.tmp", "hg"], ("model", "optimizer")),
    "composer": ({"ep0-ba900-rank0.pt": (900, 0), "ep1-ba1000-rank0.pt": (1000, 1)}, ["latest-rank0.pt"], None),
    "mmengine": (
        {"epoch_9.pth": (None, 9), "epoch_10.pth": (None, 10), "iter_500.pth": (500, None)},
        ["best_coco_bbox_mAP_epoch_9.pth", "swa_model_12.pth"],
        None,
    ),
    "detectron2": ({"model_0000999.pth": (999, None), "model_0001999.pth": (1999, None)}, ["model_final.pth"], None),
    "timm": (
        {"checkpoint-9.pth.tar": (None, 9), "checkpoint-10.pth.tar": (None, 10)},
        ["last.pth.tar", "model_best.pth.tar", "recovery-3-100.pth.tar", "tmp.pth.tar"],
        None,
    ),
    "coqui": (
        {"checkpoint_900.pth": (900, None), "checkpoint_1000.pth": (1000, None)},
        ["best_model.pth", "best_model_900.pth"],
        None,
    ),
    "ultralytics": ({"epoch9.pt": (None, 9), "epoch10.pt": (None, 10)}, ["last.pt", "best.pt"], None),
    "open_clip": ({"epoch_9.pt": (None, 9), "epoch_10.pt": (None, 10)}, ["epoch_latest.pt", "params.txt"], None),
    "nanochat": ({"model_000900.pt": (900, None), "model_001000.pt": (1000, None)}, ["optim_000900_rank0.pt"], None),
    "edm2": (
        {"network-snapshot-0000900-0.050.pkl": 900, "network-snapshot-0001000-0.050.pkl": 1000},
        ["training-state-0001000.pt"],
        None,
    ),
    "ema-pytorch": ({"0.900.pt": (900, None), "0.1000.pt": (1000, None)}, [], None),
    "guided-diffusion": (
        {"model000900.pt": (900, None), "model001000.pt": (1000, None)},
        ["opt000900.pt"],
        None,
    ),
}


def says(named):
    return (named.step, named.epoch) if named.number is None else named.number


def reasons(ignored):
    return {each.name: each.reason for each in ignored}


def listing_of(entries, others, inner):
    listing = dict.fromkeys(entries, inner)
    directories = {"recipe_state", "hg", "latest", "release", "training_state", "step1000-merged", "step_1100.tmp"}
    directories |= {"checkpoint-500-merged", "tmp-checkpoint-1500"}
    listing.update({name: ("x",) if name in directories else None for name in others})
    return listing


def test_every_row_has_an_example():
    assert set(EXAMPLES) == {row.name for row in LAYOUTS}


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_row_recognises_its_own_directory_and_leaves_the_rest_out(name):
    entries, others, inner = EXAMPLES[name]
    found = detect(listing_of(entries, others, inner))
    assert found.layout.name == name, found.why
    assert {each: says(named) for each, named in found.entries.items()} == entries
    left_out = reasons((*found.aliases, *found.ignored))
    weights = [other for other in others if other != "params.txt"]
    assert set(left_out) >= set(weights)
    assert all(left_out.values())


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_order_of_a_listing_does_not_matter(name):
    entries, others, inner = EXAMPLES[name]
    listing = listing_of(entries, others, inner)
    assert detect(dict(reversed(listing.items()))) == detect(listing)


@pytest.mark.parametrize("name", [name for name in EXAMPLES if EXAMPLES[name][2]])
def test_a_directory_without_weights_in_it_is_no_checkpoint(name):
    entries, _, inner = EXAMPLES[name]
    newest = list(entries)[-1]
    found = detect({**dict.fromkeys(entries, inner), newest: ("README.md",)})
    assert set(found.entries) == set(entries) - {newest}
    assert "unfinished" in reasons(found.ignored)[newest]


@pytest.mark.parametrize(
    ("names", "template_entries"),
    [
        (["net_9.pth", "net_10.pth", "net_100.pth"], {"net_9.pth": 9, "net_10.pth": 10, "net_100.pth": 100}),
        (
            ["w-step0900-loss0.31.pt", "w-step1000-loss0.30.pt"],
            {"w-step0900-loss0.31.pt": 900, "w-step1000-loss0.30.pt": 1000},
        ),
        (["a.9.safetensors", "a.10.safetensors", "notes.txt"], {"a.9.safetensors": 9, "a.10.safetensors": 10}),
        (["v2_ckpt_5.pt", "v2_ckpt_60.pt", "v2_ckpt_best.pt"], {"v2_ckpt_5.pt": 5, "v2_ckpt_60.pt": 60}),
    ],
)
def test_numbered_names_of_no_framework_are_read_all_the_same(names, template_entries):
    found = detect(dict.fromkeys(names))
    assert found.layout.name == "generic"
    assert {name: named.key[1] for name, named in found.entries.items()} == template_entries


def test_runs_next_to_each_other_are_not_checkpoints_of_one_run():
    model = ("model.safetensors", "config.json")
    for template in ("seed{}", "fold_{}", "version_{}", "trial-{}", "run{}"):
        with pytest.raises(NotFoundError):
            detect({template.format(number): model for number in (1, 2, 3)})
    assert len(detect({f"run1-step{number}": model for number in (1, 2, 3)}).entries) == 3


@pytest.mark.parametrize(
    ("layout", "piece", "owner"),
    [
        ("opennmt-tf", "ckpt-1100.data-00000-of-00001", "ckpt-1100.index"),
        ("tensor2tensor", "model.ckpt-1100.data-00000-of-00001", "model.ckpt-1100.index"),
        ("opennmt-py", "m_step_1100.safetensors", "m_step_1100.pt"),
    ],
)
def test_a_piece_without_what_it_belongs_to_is_said(layout, piece, owner):
    entries = EXAMPLES[layout][0]
    said = reasons(detect({**dict.fromkeys(entries), piece: None}).ignored)
    assert said[piece] == f"belongs to {owner}, which is missing or left out"
    assert "missing" not in reasons(detect({**dict.fromkeys(entries), piece: None, owner: None}).ignored)[piece]


@pytest.mark.parametrize(
    "inside",
    [
        (".metadata", "__0_0.distcp"),
        ("model.safetensors.index.json", "model-00001-of-00001.safetensors", "sharded"),
        ("sharded", "sharded/shard-00001-model-00001-of-00002.safetensors"),
        ("shard-00001-model-00001-of-00002.safetensors",),
    ],
)
def test_torchtitan_saves_in_several_formats(inside):
    found = detect({"step-900": inside, "step-1000": inside, "step-1100": ("sharded",)})
    assert (found.layout.name, sorted(found.entries)) == ("torchtitan", ["step-1000", "step-900"])
    assert "unfinished" in reasons(found.ignored)["step-1100"]


def test_two_unknown_series_of_equal_length_are_a_question():
    with pytest.raises(UsageError, match="two series") as caught:
        detect(dict.fromkeys(["g_1.pth", "g_2.pth", "d_1.pth", "d_2.pth"]))
    assert "include=" in caught.value.hint


@pytest.mark.parametrize(
    "name",
    [
        "x_1.pt.tmp",
        ".x_1.pt",
        "x_1.pt.incomplete",
        "model.ckpt-5_temp_0a1b",
        "checkpoint_7.pt.part",
        "x_1.ckpt.tmp.123",
    ],
)
def test_temporary_names_are_left_out_with_a_reason(name):
    found = detect({"x_1.pt": None, "x_2.pt": None, name: None})
    assert name not in found.entries
    assert name in reasons(found.ignored)


@pytest.mark.parametrize(
    "name", ["avg.pt", "averaged.pt", "model-avg-5.pt", "swa.pt", "ave10.pth", "model_averaged.pt", "avg_5.pt"]
)
def test_earlier_averages_are_left_out_by_name(name):
    found = detect({"x_1.pt": None, "x_2.pt": None, name: None})
    assert "average" in reasons(found.ignored)[name]


@pytest.mark.parametrize(
    "name", ["last.pt", "best.pt", "model_best.pt", "final.pt", "latest.pt", "x-last.pt", "bestmodel.pt"]
)
def test_aliases_are_left_out_by_name(name):
    found = detect({"x_1.pt": None, "x_2.pt": None, name: None})
    assert name in reasons(found.aliases)


def test_a_run_that_is_called_avg_is_not_an_average():
    found = detect({"avg_step_100.pt": None, "avg_step_200.pt": None})
    assert set(found.entries) == {"avg_step_100.pt", "avg_step_200.pt"}


def test_auxiliary_files_decide_between_frameworks_that_name_alike():
    names = ["epoch_1.pt", "epoch_2.pt"]
    assert detect(dict.fromkeys([*names, "params.txt", "epoch_latest.pt"])).layout.name == "open_clip"
    assert detect(dict.fromkeys([*names, "epoch_1.yaml", "epoch_2.yaml", "init.pt"])).layout.name == "wenet"


def test_frameworks_that_read_a_directory_alike_need_no_question():
    found = detect({"epoch_1.pt": None, "epoch_2.pt": None})
    assert found.layout.name == "wenet"
    assert "open_clip" in found.why


def test_a_real_tie_is_a_question_that_names_the_option():
    with pytest.raises(UsageError) as caught:
        detect({"epoch_1.pt": None, "model_2.pt": None})
    assert "layout='wenet'" in caught.value.hint
    assert "layout='wespeaker'" in caught.value.hint


def test_a_layout_that_is_asked_for_is_taken():
    found = detect({"epoch_1.pt": None, "model_2.pt": None}, layout="wenet")
    assert set(found.entries) == {"epoch_1.pt"}
    with pytest.raises(UsageError, match="no layout") as caught:
        detect({}, layout="fairsek")
    assert "fairseq" in caught.value.hint
    with pytest.raises(NotFoundError) as not_found:
        detect({"epoch_1.pt": None}, layout="fairseq")
    assert "checkpoint" in not_found.value.hint


def test_an_empty_directory_and_one_without_checkpoints_say_what_there_is():
    with pytest.raises(NotFoundError, match="empty"):
        detect({})
    with pytest.raises(NotFoundError, match=r"train\.log"):
        detect({"train.log": None, "config.yaml": None})
    with pytest.raises(NotFoundError) as caught:
        detect({"last.pt": None, "best.pt": None})
    assert "2 of them" in caught.value.hint


@given(st.lists(st.integers(0, 10**9), min_size=2, max_size=20, unique=True), st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_numbers_are_numbers_whatever_their_padding(steps, width):
    names = {f"m_step_{step:0{width if step % 2 else 1}d}.pt": step for step in steps}
    found = detect(dict.fromkeys(names))
    assert {name: named.step for name, named in found.entries.items()} == names


@pytest.mark.parametrize(
    ("name", "step", "epoch"),
    [
        ("checkpoint_3_2500.pt", 2500, 3),
        ("epoch=3-step=100.ckpt", 100, 3),
        ("resnet50.pth", None, None),
        ("model2.safetensors", None, None),
        ("gpt2-iter-500.pt", 500, None),
        ("5.ckpt", None, None),
        ("checkpoint-500", 500, None),
    ],
)
def test_a_lone_name_gives_only_numbers_that_it_calls_step_or_epoch(name, step, epoch):
    named = name_numbers(name)
    assert (named.step, named.epoch) == (step, epoch)


@given(st.text(st.characters(codec="ascii", exclude_characters="/\0"), max_size=60), st.booleans())
@settings(max_examples=100, deadline=None)
def test_any_name_is_classified_without_a_crash(name, is_directory):
    for row in LAYOUTS:
        classify(row, {name or "x": ("x",) if is_directory else None})


@pytest.mark.parametrize("piece", ["epoch=1-", "-step=1_", "a--b=", "checkpoint_1_", "best.", "1.1-1"])
def test_a_long_malicious_name_takes_few_calls_to_classify(piece):
    name = (piece * 255)[:251] + ".ckp"

    def classify_it() -> None:
        for row in LAYOUTS:
            classify(row, {name: None, name[:-4] + ".ckpt": None})

    classify_it()  # compiles the regular expressions
    assert count_calls(classify_it) < 200 * len(LAYOUTS)
