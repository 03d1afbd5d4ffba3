"""sentence-transformers: its trainer's directories, modules in folders of their own, taken by SentenceTransformer."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("sentence_transformers")
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.losses import CosineSimilarityLoss
from sentence_transformers.models import Dense, Pooling, Transformer
from transformers import BertConfig, BertModel, BertTokenizerFast

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(40))]


@pytest.fixture
def model(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(vocab_file=str(base / "vocab.txt")).save_pretrained(base)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    BertModel(config).save_pretrained(base)
    words = Transformer(str(base), max_seq_length=8)
    return SentenceTransformer(modules=[words, Pooling(8), Dense(8, 4)], device="cpu")


def test_sentence_transformer_loads_the_average(average, model, tmp_path, mean, same):
    pairs = Dataset.from_dict(
        {
            "one": [f"w{number} w{number + 1}" for number in range(16)],
            "two": [f"w{number + 2}" for number in range(16)],
            "score": [number / 16 for number in range(16)],
        }
    )
    run = tmp_path / "run"
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(run),
        num_train_epochs=4,
        per_device_train_batch_size=4,
        save_steps=4,
        learning_rate=0.01,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=pairs, loss=CosineSimilarityLoss(model)
    ).train()
    said = average(run, "--last", 3)
    assert said.steps == [8, 12, 16]
    states = [SentenceTransformer(str(run / name), device="cpu").state_dict() for name in said.names]
    averaged = SentenceTransformer(str(said.output), device="cpu")
    assert len(averaged) == 3  # the transformer, the pooling and the dense layer
    same(averaged.state_dict(), mean(states))
    assert averaged.encode("w1 w2").shape == (4,)
    assert not torch.equal(
        states[0]["0.model.embeddings.word_embeddings.weight"], states[1]["0.model.embeddings.word_embeddings.weight"]
    )
