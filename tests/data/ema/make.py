"""Make the fixtures of this directory: averages as the frameworks themselves write them, and as they load them.

    pip install torch timm ema-pytorch torch-ema diffusers lightning safetensors
    python tests/data/ema/make.py

Each ``NAME.pt`` (or ``.ckpt``, ``.pth.tar``) is written by the framework's own code; ``NAME.expected.safetensors`` is
what its own loader calls the average, and has the trained values of what the average does not cover.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

HERE = Path(__file__).parent


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 4), nn.Linear(4, 4))


def train(model: nn.Module, updates: int, after_step) -> torch.optim.Optimizer:
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(updates):
        optimizer.zero_grad()
        model(torch.randn(4, 1, 4, 4)).square().mean().backward()
        optimizer.step()
        after_step()
    return optimizer


def expect(name: str, state: dict[str, torch.Tensor]) -> None:
    save_file(
        {key: value.detach().clone().contiguous() for key, value in state.items()},
        HERE / f"{name}.expected.safetensors",
    )


def make_timm() -> None:
    from timm.models import load_state_dict
    from timm.utils import CheckpointSaver, ModelEmaV3

    model = net()
    average = ModelEmaV3(model, decay=0.9)
    optimizer = train(model, 5, lambda: average.update(model))
    with tempfile.TemporaryDirectory() as directory:
        saver = CheckpointSaver(model, optimizer, model_ema=average, checkpoint_dir=directory, recovery_dir=directory)
        saver.save_checkpoint(4, metric=0.5)
        shutil.copy(Path(directory) / "last.pth.tar", HERE / "timm.pth.tar")
    expect("timm", load_state_dict(str(HERE / "timm.pth.tar"), use_ema=True, weights_only=False))


def make_averaged_model() -> None:
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    model = net()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    optimizer = train(model, 5, lambda: average.update_parameters(model))
    torch.save(average.state_dict(), HERE / "averaged_model.pt")
    both = {"model": model.state_dict(), "model_ema": average.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(both, HERE / "torchvision.pt")
    for name in ("averaged_model", "torchvision"):
        tree = torch.load(HERE / f"{name}.pt")
        loaded = AveragedModel(net())
        loaded.load_state_dict(tree.get("model_ema", tree))
        expect(name, loaded.module.state_dict())


def make_ema_pytorch() -> None:
    from ema_pytorch import EMA

    model = net()
    average = EMA(model, beta=0.9, update_after_step=0, update_every=1, include_online_model=True)
    train(model, 5, average.update)
    torch.save(average.state_dict(), HERE / "ema_pytorch.pt")
    loaded = EMA(net(), include_online_model=True)
    loaded.load_state_dict(torch.load(HERE / "ema_pytorch.pt"))
    expect("ema_pytorch", loaded.ema_model.state_dict())


def make_post_hoc() -> None:
    from ema_pytorch import PostHocEMA

    folder = HERE / "post_hoc"
    shutil.rmtree(folder, ignore_errors=True)
    model = nn.Linear(8, 4)
    tracker = PostHocEMA(
        model,
        sigma_rels=(0.05, 0.28),
        update_every=1,
        checkpoint_every_num_steps=50,
        checkpoint_dtype=torch.float32,
        checkpoint_folder=str(folder),
    )
    torch.manual_seed(2)
    for _ in range(401):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        tracker.update()
    made = tracker.synthesize_ema_model(sigma_rel=0.15).state_dict()
    expect("post_hoc", {name[10:]: value for name, value in made.items() if name.startswith("ema_model.")})


def _listed(name: str, tree: dict, model: nn.Module, copy_to) -> None:
    torch.save(tree, HERE / f"{name}.pt")
    loaded = net()
    loaded.load_state_dict(model.state_dict())
    copy_to(torch.load(HERE / f"{name}.pt"), loaded)
    expect(name, loaded.state_dict())


def make_torch_ema() -> None:
    from torch_ema import ExponentialMovingAverage

    model = net()
    average = ExponentialMovingAverage(model.parameters(), decay=0.9)
    train(model, 5, average.update)

    def copy_to(tree: dict, loaded: nn.Module) -> None:
        other = ExponentialMovingAverage(loaded.parameters(), decay=0.5)
        other.load_state_dict(tree["ema"])
        other.copy_to(loaded.parameters())

    _listed("torch_ema", {"model": model.state_dict(), "ema": average.state_dict(), "step": 5}, model, copy_to)


def make_diffusers() -> None:
    from diffusers.training_utils import EMAModel

    model = net()
    average = EMAModel(model.parameters(), decay=0.9)
    train(model, 5, lambda: average.step(model.parameters()))

    def copy_to(tree: dict, loaded: nn.Module) -> None:
        other = EMAModel(loaded.parameters())
        other.load_state_dict(tree["ema"])
        other.copy_to(loaded.parameters())

    _listed("diffusers", {"state_dict": model.state_dict(), "ema": average.state_dict()}, model, copy_to)


def make_lightning() -> None:
    import lightning
    from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def training_step(self, batch: list[torch.Tensor], _index: int) -> torch.Tensor:
            return self.net(batch[0]).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    average = EMAWeightAveraging(decay=0.9)
    torch.manual_seed(1)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(16, 1, 4, 4)), batch_size=4)
    with tempfile.TemporaryDirectory() as directory:
        saver = ModelCheckpoint(directory, filename="{step}", every_n_train_steps=3, save_top_k=-1)
        trainer = lightning.Trainer(
            max_steps=4,
            callbacks=[average, saver],
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=directory,
        )
        trainer.fit(Module(), data)
        shutil.copy(next(Path(directory).glob("step=3*.ckpt")), HERE / "lightning.ckpt")
    loaded = Module.load_from_checkpoint(HERE / "lightning.ckpt", map_location="cpu")
    expect("lightning", loaded.state_dict())


if __name__ == "__main__":
    for operator in ("nms", "qnms"):  # torchvision built for another torch; timm only imports it
        torch.library.define(f"torchvision::{operator}", "(Tensor a, Tensor b, float c) -> Tensor")
    made = [
        make_timm,
        make_averaged_model,
        make_ema_pytorch,
        make_post_hoc,
        make_torch_ema,
        make_diffusers,
        make_lightning,
    ]
    for make in made:
        make()
    packages = ("torch", "timm", "ema-pytorch", "torch-ema", "diffusers", "lightning")
    versions = {package: importlib.metadata.version(package) for package in packages}
    (HERE / "versions.json").write_text(json.dumps(versions, indent=1) + "\n")
