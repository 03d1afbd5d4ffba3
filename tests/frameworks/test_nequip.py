"""nequip: checkpoints of `nequip-train` with its EMA, and the model that ModelFromCheckpoint builds of the average."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import yaml

pytest.importorskip("nequip")
pytest.importorskip("ase")

import ase.io
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from nequip.model import ModelFromCheckpoint
from nequip.utils.global_state import set_global_state

CUTOFF = 3.0


def loader(batch_size):
    return {"_target_": "torch.utils.data.DataLoader", "batch_size": batch_size}


@pytest.fixture
def trained(tmp_path):
    random = np.random.default_rng(0)
    frames = []
    for _ in range(8):
        atoms = ase.Atoms("H4", positions=random.uniform(0, 2.5, (4, 3)))
        atoms.calc = SinglePointCalculator(atoms, energy=float(random.normal()), forces=random.normal(size=(4, 3)))
        frames.append(atoms)
    ase.io.write(tmp_path / "frames.xyz", frames, format="extxyz")
    config = {
        "run": ["train"],
        "data": {
            "_target_": "nequip.data.datamodule.ASEDataModule",
            "seed": 1,
            "train_file_path": str(tmp_path / "frames.xyz"),
            "val_file_path": str(tmp_path / "frames.xyz"),
            "ase_args": {"format": "extxyz"},
            "transforms": [
                {"_target_": "nequip.data.transforms.ChemicalSpeciesToAtomTypeMapper", "model_type_names": ["H"]},
                {"_target_": "nequip.data.transforms.NeighborListTransform", "r_max": CUTOFF},
            ],
            "train_dataloader": loader(2),
            "val_dataloader": loader(4),
        },
        "trainer": {
            "_target_": "lightning.Trainer",
            "max_epochs": 4,
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "callbacks": [
                {
                    "_target_": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "dirpath": str(tmp_path / "run"),
                    "save_top_k": -1,
                    "save_last": True,
                }
            ],
        },
        "training_module": {
            "_target_": "nequip.train.EMALightningModule",
            "ema_decay": 0.6,
            "loss": {"_target_": "nequip.train.EnergyForceLoss", "coeffs": {"total_energy": 1.0, "forces": 1.0}},
            "val_metrics": {
                "_target_": "nequip.train.EnergyForceMetrics",
                "coeffs": {"per_atom_energy_mae": 1.0, "forces_mae": 1.0},
            },
            "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.05},
            "model": {
                "_target_": "nequip.model.NequIPGNNModel",
                "seed": 2,
                "model_dtype": "float32",
                "type_names": ["H"],
                "r_max": CUTOFF,
                "num_bessels": 2,
                "num_layers": 1,
                "l_max": 1,
                "parity": False,
                "num_features": 2,
                "radial_mlp_depth": 1,
                "radial_mlp_width": 4,
                "avg_num_neighbors": 3.0,
                "per_type_energy_scales": 1.0,
                "per_type_energy_shifts": 0.0,
                "per_type_energy_scales_trainable": False,
                "per_type_energy_shifts_trainable": False,
            },
        },
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    ran = subprocess.run(
        [sys.executable, "-c", "from nequip.scripts.train import main; main()", "-cp", str(tmp_path), "-cn", "config"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return tmp_path / "run"


def test_model_from_checkpoint_takes_the_average_of_the_ema(average, trained, mean, same):
    """What it builds is the EMA, which ckpttool averages with the weights, each with its kind."""
    set_global_state()
    said = average(trained, "--last", 3)
    assert said.names == [f"epoch={epoch}-step={4 * (epoch + 1)}.ckpt" for epoch in (1, 2, 3)]
    assert "last.ckpt" in said.skipped
    states = [ModelFromCheckpoint(str(trained / name)).state_dict() for name in said.names]
    assert not all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    same(ModelFromCheckpoint(str(said.output)).state_dict(), mean(states))
