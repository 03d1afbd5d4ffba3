"""open_clip: the files of its training script, taken by its own load_checkpoint."""

from __future__ import annotations

import pytest
import torch
from absent import stand_in

stand_in("torchvision")
pytest.importorskip("open_clip")
import open_clip


def build():
    return open_clip.CLIP(
        embed_dim=8,
        vision_cfg={"image_size": 16, "layers": 1, "width": 64, "patch_size": 8},
        text_cfg={"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1},
    )


def test_load_checkpoint_takes_the_average(average, tmp_path, mean, same):
    """`open_clip_train.main` saves an epoch with DistributedDataParallel's prefix, and a copy as epoch_latest.pt."""
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for epoch in range(1, 5):
        model(torch.randn(2, 3, 16, 16), torch.randint(0, 32, (2, 8)))[0].square().mean().backward()
        optimizer.step()
        state = {f"module.{name}": value.clone() for name, value in model.state_dict().items()}
        content = {"epoch": epoch, "name": "tiny", "state_dict": state, "optimizer": optimizer.state_dict()}
        torch.save(content, tmp_path / f"epoch_{epoch}.pt")
        torch.save(content, tmp_path / "epoch_latest.pt")
    said = average(tmp_path, "--last", 3)
    assert said.names == ["epoch_2.pt", "epoch_3.pt", "epoch_4.pt"]
    assert "epoch_latest.pt" in said.skipped
    members = []
    for name in said.names:
        member = build()
        open_clip.load_checkpoint(member, str(tmp_path / name))
        members.append({key: value.clone() for key, value in member.state_dict().items()})
    averaged = build()
    open_clip.load_checkpoint(averaged, str(said.output))
    same(averaged.state_dict(), mean(members))
