"""What is next to the weights in a checkpoint's directory: all is copied but for what is named, with the reason."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ckpttool import average
from ckpttool.errors import UnreadableError
from ckpttool.formats import open_checkpoint
from ckpttool.formats.directories import auxiliary
from ckpttool.run_layouts import LAYOUTS

TOKENIZER_FILES = (
    *("bpe.codes", "byte_maps.json", "dict.txt", "emoji.json", "entity_vocab.json", "merges.txt", "normalizer.json"),
    *("prophetnet.tokenizer", "sentencepiece.bpe.model", "sentencepiece.model", "source.spm", "spiece.model"),
    *("spm.model", "spm_char.model", "target.spm", "target_vocab.json", "tokenizer.json", "tokenizer.model"),
    *("tokenizer_config.json", "vocab-src.json", "vocab-tgt.json", "vocab.json", "vocab.txt"),
    *("word_pronunciation.json", "word_shape.json"),
)
"""Every value in `vocab_files_names` of the 153 tokenizer classes of transformers 4.57.6, which version 5.24 uses as
well, as far as it has the classes."""

ASKED_FOR = {
    **dict.fromkeys(TOKENIZER_FILES, "a class of transformers"),
    "qwen.tiktoken": "Qwen",
    "joint.codes": "Eole",
    "vocab.pkl": "Transformer-XL",
    "vocab.bin": "Transformer-XL",
    "added_tokens.json": "tokenizers",
    "video_preprocessor_config.json": "processors",
    "additional_chat_templates/tool_use.jinja": "tokenizers",
    "custom_generate/generate.py": "generate",
    "speaker_embeddings/v2/en_speaker_6_coarse_prompt.npy": "Bark",
    "spk_dict.pt": "Qwen2.5-Omni",
    "speakers_xtts.pth": "XTTS",
    "voices/af_heart.pt": "Kokoro",
    "language_model/5gram.bin": "Wav2Vec2ProcessorWithLM",
    "language_model/unigrams.txt": "Wav2Vec2ProcessorWithLM",
    "1_Pooling/config.json": "sentence-transformers",
    "document_0_MLMTransformer/config.json": "sparse encoders",
    "tekken.json": "Mistral",
    "cmvn.mvn": "FunASR",
    "NOTICE": "its licence",
    "assets/figure.png": "the model card",
}

LEFT_OUT = {
    "pytorch_model.bin": "weights that are not averaged",
    "model.fp16.safetensors": "weights that are not averaged",
    "model-00001-of-00002.safetensors": "weights that are not averaged",
    "tf_model.h5": "weights that are not averaged",
    "flax_model.msgpack": "weights that are not averaged",
    "model-q4.gguf": "weights that are not averaged",
    "mean_teacher.pt": "weights that are not averaged",
    "checkpoint-500/model.safetensors": "weights that are not averaged",
    "onnx/model_quantized.onnx": "weights that are not averaged",
    "original/consolidated.00.pth": "weights that are not averaged",
    "openvino_model.xml": "weights that are not averaged",
    "runs/events.out.tfevents.17": "logs",
    "train.log": "logs",
    "wandb/run/files/config.yaml": "logs",
    ".git/HEAD": "a hidden folder",
    ".cache/huggingface/x.lock": "a hidden folder",
    "__pycache__/modeling.cpython-311.pyc": "compiled code",
    ".DS_Store": "a temporary file",
    "model.safetensors.tmp": "a hidden or temporary name",
}


def save(directory, value, *names):
    directory.mkdir(parents=True, exist_ok=True)
    save_file({"weight": torch.full((2,), float(value))}, directory / "model.safetensors")
    for name in names:
        place = directory / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"content of {name}")
    return directory


def files_below(folder):
    found = {os.path.relpath(os.path.join(top, name), folder) for top, _, names in os.walk(folder) for name in names}
    return {name.replace(os.sep, "/") for name in found}


def left_out(checkpoint):
    return {item.path.relative_to(checkpoint.path).as_posix(): item.reason for item in checkpoint.left_out}


def averaged(tmp_path, *names):
    """The average of two model directories of which the newest has further files."""
    save(tmp_path / "a", 1)
    newest = save(tmp_path / "b", 3, *names)
    average([tmp_path / "a", newest], tmp_path / "out")
    return tmp_path / "out"


def test_every_file_that_a_loader_asks_for_is_copied_byte_for_byte(tmp_path):
    output = averaged(tmp_path, *ASKED_FOR)
    assert files_below(output) == {"model.safetensors", *ASKED_FOR}
    for name in ASKED_FOR:
        assert (output / name).read_text() == f"content of {name}"
    assert left_out(open_checkpoint(tmp_path / "b")) == {}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_is_not_copied_is_named_with_the_reason(tmp_path, name):
    assert files_below(averaged(tmp_path, name)) == {"model.safetensors"}
    told = left_out(open_checkpoint(tmp_path / "b"))
    assert list(told.values()) == [LEFT_OUT[name]]
    assert name.startswith(next(iter(told)))


def test_a_folder_with_weights_is_left_out_as_a_whole_and_the_one_around_it_is_not(tmp_path):
    output = averaged(
        tmp_path, "more/checkpoint-5/model.safetensors", "more/checkpoint-5/config.json", "more/notes.txt"
    )
    assert files_below(output) == {"model.safetensors", "more/notes.txt"}
    assert left_out(open_checkpoint(tmp_path / "b")) == {"more/checkpoint-5": "weights that are not averaged"}


def test_the_plan_and_the_json_say_what_is_left_out(tmp_path):
    save(tmp_path / "a", 1)
    save(tmp_path / "b", 3, "pytorch_model.bin", "tf_model.h5", "train.log", "dict.txt")
    command = [sys.executable, "-m", "ckpttool", "average", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "out"]
    ran = subprocess.run([*map(str, command), "--dry-run", "--json"], capture_output=True, text=True, check=True)
    document = json.loads(ran.stdout)
    assert {Path(item["path"]).name: item["reason"] for item in document["left_out"]} == {
        "pytorch_model.bin": "weights that are not averaged",
        "tf_model.h5": "weights that are not averaged",
        "train.log": "logs",
    }
    said = "not copied: pytorch_model.bin, tf_model.h5 (weights that are not averaged); train.log (logs)"
    assert said in document["notes"]
    ran = subprocess.run(
        [*map(str, command[:-1]), str(tmp_path / "out.safetensors"), "--dry-run", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(ran.stdout)["left_out"] == []


def test_what_is_too_large_is_left_out(tmp_path):
    newest = save(tmp_path / "b", 3, "data.jsonl")
    os.truncate(newest / "data.jsonl", auxiliary.MAX_FILE_BYTES + 1)
    average([save(tmp_path / "a", 1), newest], tmp_path / "out")
    assert files_below(tmp_path / "out") == {"model.safetensors"}
    assert left_out(open_checkpoint(newest)) == {"data.jsonl": "larger than 1 GiB"}


def test_a_folder_of_too_many_files_is_left_out_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(auxiliary, "_MAX_FILES", 3)
    names = [f"samples/{number}.png" for number in range(5)]
    assert files_below(averaged(tmp_path, *names, "few/1.png")) == {"model.safetensors", "few/1.png"}
    assert left_out(open_checkpoint(tmp_path / "b")) == {"samples": "more than 3 files"}


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system that takes any bytes as a name")
def test_names_that_are_not_text_are_left_out_and_shown_escaped(tmp_path):
    newest = save(tmp_path / "b", 3, "größe.txt", "two\nlines.onnx")
    (newest / os.fsdecode(b"\xff.txt")).write_text("x")
    plan = average([save(tmp_path / "a", 1), newest], tmp_path / "out", dry_run=True)
    assert plan.notes == (
        "not copied: 'two\\nlines.onnx' (weights that are not averaged); '\\udcff.txt' (a name that is not Unicode)",
    )
    average([tmp_path / "a", newest], tmp_path / "out")
    assert files_below(tmp_path / "out") == {"model.safetensors", "größe.txt"}


# --- Links -----------------------------------------------------------------------------------------------------


def test_a_link_out_of_the_checkpoint_is_not_followed(tmp_path):
    newest = save(tmp_path / "b", 3, "tokenizer.json")
    (tmp_path / "secret").write_text("not for others")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside").write_text("not for others")
    (newest / "config.json").symlink_to("/etc/passwd")
    (newest / "vocab.txt").symlink_to("../secret")
    (newest / "assets").symlink_to("../folder")
    (newest / "same.json").symlink_to("tokenizer.json")
    average([save(tmp_path / "a", 1), newest], tmp_path / "out")
    assert files_below(tmp_path / "out") == {"model.safetensors", "tokenizer.json", "same.json"}
    assert not (tmp_path / "out" / "same.json").is_symlink()
    out = "a link that leads out of the checkpoint"
    assert left_out(open_checkpoint(newest)) == {"config.json": out, "vocab.txt": out, "assets": out}


def test_links_of_a_download_from_the_hub_are_followed_into_its_blobs(tmp_path):
    def download(name, value):
        repository = tmp_path / f"models--{name}"
        snapshot = repository / "snapshots" / "0123"
        save(repository / "blobs", value, "aaaa", "bbbb")
        (snapshot / "custom_generate").mkdir(parents=True)
        (snapshot / "model.safetensors").symlink_to("../../blobs/model.safetensors")
        (snapshot / "source.spm").symlink_to("../../blobs/aaaa")
        (snapshot / "custom_generate" / "generate.py").symlink_to("../../../blobs/bbbb")
        return snapshot

    other, newest = download("one", 1), download("two", 3)
    (newest / "other.txt").symlink_to("../../../models--one/blobs/aaaa")
    average([other, newest], tmp_path / "out")
    assert files_below(tmp_path / "out") == {"model.safetensors", "source.spm", "custom_generate/generate.py"}
    assert (tmp_path / "out" / "source.spm").read_text() == "content of aaaa"
    assert left_out(open_checkpoint(newest)) == {"other.txt": "a link that leads out of the checkpoint"}


def test_a_checkpoint_that_is_a_link_itself_is_followed(tmp_path):
    real = save(tmp_path / "real", 3, "bpe.codes")
    (tmp_path / "b").symlink_to(real)
    average([save(tmp_path / "a", 1), tmp_path / "b"], tmp_path / "out")
    assert files_below(tmp_path / "out") == {"model.safetensors", "bpe.codes"}


def test_links_in_circles_and_to_nothing_are_left_out(tmp_path):
    newest = save(tmp_path / "b", 3, "one/x.txt", "two/y.txt")
    (newest / "self").symlink_to("self")
    (newest / "all").symlink_to(".")
    (newest / "one" / "two").symlink_to("../two")
    (newest / "two" / "one").symlink_to("../one")
    (newest / "gone.xyz").symlink_to("nowhere")
    (newest / "optimizer.pt").symlink_to("nowhere")
    average([save(tmp_path / "a", 1), newest], tmp_path / "out")
    found = files_below(tmp_path / "out")
    assert found == {"model.safetensors", "one/x.txt", "two/y.txt", "one/two/y.txt", "two/one/x.txt"}
    assert left_out(open_checkpoint(newest)) == {
        "self": "a link that leads nowhere",
        "gone.xyz": "a link that leads nowhere",
        "all": "a link that leads back",
        "one/two/one": "a link that leads back",
        "two/one/two": "a link that leads back",
    }


def test_what_is_not_a_file_is_left_out_without_waiting(tmp_path):
    newest = save(tmp_path / "b", 3)
    os.mkfifo(newest / "config.json")
    assert left_out(open_checkpoint(newest)) == {"config.json": "not a regular file"}


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a user who may not read everything")
def test_a_file_that_may_not_be_read_is_refused_in_the_plan(tmp_path):
    newest = save(tmp_path / "b", 3, "source.spm")
    (newest / "source.spm").chmod(0)
    with pytest.raises(UnreadableError, match=r"source\.spm: cannot be read"):
        average([save(tmp_path / "a", 1), newest], tmp_path / "out", dry_run=True)


# --- Training state, and the table of layouts ------------------------------------------------------------------


@pytest.mark.parametrize("row", [row for row in LAYOUTS if row.state], ids=lambda row: row.name)
def test_the_training_state_of_every_row_is_copied_only_where_it_is_asked_for(tmp_path, row):
    names = {glob.replace("*", "0") for glob in row.state}
    save(tmp_path / "a", 1)
    newest = save(tmp_path / "b", 3, *names)
    average([tmp_path / "a", newest], tmp_path / "out")
    assert files_below(tmp_path / "out") == {"model.safetensors"}
    assert open_checkpoint(newest).left_out == ()
    average([tmp_path / "a", newest], tmp_path / "kept", keep_state=True)
    assert files_below(tmp_path / "kept") == {"model.safetensors", *names}


@pytest.mark.parametrize("row", [row for row in LAYOUTS if row.auxiliary], ids=lambda row: row.name)
def test_the_auxiliary_files_of_every_row_are_copied(tmp_path, row):
    names = {glob.replace("*", "0") for glob in row.auxiliary}
    assert files_below(averaged(tmp_path, *names)) == {"model.safetensors", *names}


# --- Other directories -----------------------------------------------------------------------------------------


def test_directories_of_parts_follow_the_same_rule(tmp_path):
    for step in (100, 200):
        folder = tmp_path / f"iter_{step:07d}"
        for rank in ("mp_rank_00", "mp_rank_01"):
            (folder / rank).mkdir(parents=True)
            content = {"iteration": step, "model": {"weight": torch.full((2,), float(step))}}
            torch.save(content, folder / rank / "model_optim_rng.pt")
            (folder / rank / "rank.txt").write_text(rank)
        (folder / "dict.txt").write_text("a 1")
        (folder / "code" / "deep").mkdir(parents=True)
        (folder / "code" / "deep" / "model.py").write_text("pass")
        (folder / "export.onnx").write_bytes(b"onnx")
        (folder / "config.json").symlink_to("/etc/passwd")
    average([tmp_path / "iter_0000100", tmp_path / "iter_0000200"], tmp_path / "out")
    assert files_below(tmp_path / "out") == {
        "mp_rank_00/model_optim_rng.pt",
        "mp_rank_01/model_optim_rng.pt",
        "mp_rank_00/rank.txt",
        "mp_rank_01/rank.txt",
        "dict.txt",
        "code/deep/model.py",
    }
    assert left_out(open_checkpoint(tmp_path / "iter_0000200")) == {
        "export.onnx": "weights that are not averaged",
        "config.json": "a link that leads out of the checkpoint",
    }


def test_the_components_of_a_pipeline_are_those_that_its_index_names(tmp_path):
    for step in (1, 2):
        folder = tmp_path / str(step)
        for component in ("unet", "safety_checker"):
            (folder / component).mkdir(parents=True)
            save_file({"weight": torch.full((2,), float(step))}, folder / component / "model.safetensors")
            (folder / component / "config.json").write_text(json.dumps({"heads": step}))
        (folder / "scheduler").mkdir()
        (folder / "scheduler" / "scheduler_config.json").write_text("{}")
        index = {"_class_name": "P", "unet": ["diffusers", "U"], "safety_checker": ["sd", "S"], "x": [None, None]}
        (folder / "model_index.json").write_text(json.dumps(index))
    average([tmp_path / "1", tmp_path / "2"], tmp_path / "out")
    assert files_below(tmp_path / "out") == files_below(tmp_path / "2")
    configured = open_checkpoint(tmp_path / "2").configurations
    assert configured == {"unet/config.json": {"heads": 2}, "safety_checker/config.json": {"heads": 2}}


def test_configurations_that_are_not_objects_are_none(tmp_path):
    folder = save(tmp_path / "a", 1)
    for text in ("[1]", "{", '{"a": 1, "a": 2}', "\udcff"):
        (folder / "config.json").write_text(text, encoding="utf-8", errors="surrogateescape")
        assert open_checkpoint(folder).configurations == {}
    (folder / "adapter_config.json").write_text('{"lora_alpha": 8}')
    assert open_checkpoint(folder).configurations == {"adapter_config.json": {"lora_alpha": 8}}
