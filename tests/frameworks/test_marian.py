"""transformers' Marian: Seq2SeqTrainer's directories with two SentencePiece models, taken by model and tokenizer."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("transformers")
spm = pytest.importorskip("sentencepiece")
from transformers import (
    MarianConfig,
    MarianMTModel,
    MarianTokenizer,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)


@pytest.fixture
def tokenizer(tmp_path):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (tmp_path / "text").write_text("\n".join(f"ein haus {number} a house {number} more" for number in range(60)))
    for name in ("source", "target"):
        spm.SentencePieceTrainer.train(
            input=str(tmp_path / "text"), model_prefix=str(folder / name), vocab_size=30, minloglevel=2
        )
        (folder / f"{name}.model").rename(folder / f"{name}.spm")
    pieces = [line.split("\t")[0] for line in (folder / "source.vocab").read_text().splitlines()]
    vocabulary = ["</s>", "<unk>", *(piece for piece in pieces if piece not in {"</s>", "<unk>", "<s>"}), "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(vocabulary)}))
    return MarianTokenizer(
        str(folder / "source.spm"), str(folder / "target.spm"), str(folder / "vocab.json"), source_lang="de"
    )


def test_model_and_tokenizer_load_from_the_average(average, tokenizer, tmp_path, mean, same):
    size = len(tokenizer)
    config = MarianConfig(
        vocab_size=size,
        d_model=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
        max_position_embeddings=16,
        pad_token_id=size - 1,
        decoder_start_token_id=size - 1,
        eos_token_id=0,
        forced_eos_token_id=0,
    )
    model = MarianMTModel(config)
    example = tokenizer("ein haus", text_target="a house")
    run = tmp_path / "run"
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(run),
        max_steps=8,
        save_steps=2,
        learning_rate=0.01,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    Seq2SeqTrainer(model=model, args=arguments, train_dataset=[dict(example)] * 8, processing_class=tokenizer).train()
    said = average(run, "--last", 3)
    assert said.steps == [4, 6, 8]
    states = [MarianMTModel.from_pretrained(run / name).state_dict() for name in said.names]
    averaged = MarianMTModel.from_pretrained(said.output)
    same(averaged.state_dict(), mean(states))
    loaded = MarianTokenizer.from_pretrained(said.output)
    assert loaded("ein haus") == tokenizer("ein haus")
    generated = averaged.generate(**loaded("ein haus", return_tensors="pt"), max_length=8, num_beams=1)
    assert isinstance(loaded.batch_decode(generated)[0], str)
    assert torch.isfinite(averaged.model.shared.weight).all()
