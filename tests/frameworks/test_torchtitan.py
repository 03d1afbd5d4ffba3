"""torchtitan: directories of its CheckpointManager, with all that a trainer keeps, loaded by the manager again."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

pytest.importorskip("torchtitan")
from torchtitan.components.checkpointer import CheckpointManager


class Part:
    """What a trainer keeps next to the model: an object with a state."""

    def __init__(self, **state):
        self.state = state

    def state_dict(self):
        return dict(self.state)

    def load_state_dict(self, state):
        self.state.update(state)


@pytest.fixture
def one_rank(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def manager(folder, model, **changes):
    config = CheckpointManager.Config(
        enable=True, folder=str(folder), interval=2, last_save_model_only=False, **changes
    )
    return CheckpointManager(
        config,
        dataloader=Part(position=torch.tensor(3)),
        model_parts=[model],
        optimizers=Part(**{"layer.weight.exp_avg": torch.zeros(4, 3)}),
        lr_schedulers=Part(last_epoch=5),
        states={"train_state": Part(step=torch.tensor(0))},
        sd_adapter=None,
        base_folder="",
    )


def build():
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))


@pytest.mark.usefixtures("one_rank")
def test_the_manager_loads_the_average(average, tmp_path, mean, same):
    model = build()
    saver = manager(tmp_path / "checkpoint", model)
    states = {}
    for step in range(1, 9):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape))
        if saver.save(step):
            states[step] = {name: value.clone() for name, value in model.state_dict().items()}
    saver.close()
    said = average(tmp_path / "checkpoint", "--last", 3, "-o", f"{tmp_path}/averaged/")
    assert said.names == ["step-4", "step-6", "step-8"]
    assert said.steps == [4, 6, 8]
    averaged = build()
    loader = manager(tmp_path / "fresh", averaged, initial_load_path=str(said.output))
    assert loader.load()
    loader.close()
    same(averaged.state_dict(), mean([states[step] for step in said.steps]))
