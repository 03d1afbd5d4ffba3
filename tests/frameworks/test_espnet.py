"""ESPnet 2: its Reporter's scores and average_nbest_models, whose file is the one to compare with."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("typeguard")
pytest.importorskip("espnet2")
from espnet2.main_funcs.average_nbest_models import average_nbest_models
from espnet2.train.reporter import Reporter

ACCURACY = [0.1, 0.5, 0.3, 0.4]


def test_the_best_epochs_are_those_of_espnet_and_their_average_is_its_own(average, tmp_path, mean, same):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    reporter = Reporter()
    for epoch, accuracy in enumerate(ACCURACY, 1):
        model(torch.randn(8, 3))
        with torch.no_grad():
            model[0].weight.add_(torch.randn(4, 3))
        reporter.set_epoch(epoch)
        with reporter.observe("valid") as observer:
            observer.register({"acc": torch.tensor(accuracy)})
            observer.next()
        torch.save(model.state_dict(), tmp_path / f"{epoch}epoch.pth")
        content = {"model": model.state_dict(), "reporter": reporter.state_dict(), "optimizers": [], "schedulers": []}
        torch.save(content, tmp_path / "checkpoint.pth")
    average_nbest_models(tmp_path, reporter, [("valid", "acc", "max")], 2)
    theirs = torch.load(tmp_path / "valid.acc.ave_2best.pth")
    said = average(tmp_path, "--best", 2, "--metric", "valid.acc", "--mode", "max", "-o", tmp_path / "ours.pth")
    assert said.names == ["2epoch.pth", "4epoch.pth"]
    ours = torch.load(said.output)
    same(ours, mean([torch.load(tmp_path / name) for name in said.names]))
    for name, tensor in theirs.items():
        if tensor.is_floating_point():  # two members: one float32 sum, halved, is one rounding as well
            assert torch.equal(ours[name], tensor), name
    assert {"valid.acc.ave_2best.pth", "valid.acc.ave.pth"} <= said.skipped.keys()
