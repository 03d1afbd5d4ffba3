"""Where runs keep the metrics of their checkpoints, and what is said of values that are equal or rounded."""

import pytest
import torch

from ckpttool.errors import NotFoundError, UnreadableError
from ckpttool.selection.discovery import discover

WEIGHTS = {"w": torch.ones(4)}


def names(found):
    return [entry.name for entry in found.entries]


def save_lightning(directory, scores, stored=True):
    for epoch, score in enumerate(scores):
        state = {"monitor": "val_loss", "current_score": torch.tensor(score), "best_model_score": torch.tensor(0.329)}
        name = f"epoch={epoch}-val_loss={score:.2f}.ckpt"
        callbacks = {"ModelCheckpoint{'monitor': 'val_loss', 'mode': 'min'}": state}
        torch.save(
            {
                "state_dict": WEIGHTS,
                "epoch": epoch,
                "global_step": 100 * (epoch + 1),
                "pytorch-lightning_version": "2.5.0",
                **({"callbacks": callbacks} if stored else {}),
            },
            directory / name,
        )


SCORES = (0.334, 0.331, 0.329, 0.3349)


def test_the_stored_metric_counts_before_the_one_rounded_in_the_name(tmp_path):
    save_lightning(tmp_path, SCORES)
    found = discover(tmp_path).best(2, "val_loss")
    assert names(found) == ["epoch=1-val_loss=0.33.ckpt", "epoch=2-val_loss=0.33.ckpt"]
    assert found.warnings == ()


def test_a_tie_at_the_cut_is_said_with_what_was_rounded(tmp_path):
    save_lightning(tmp_path, SCORES, stored=False)
    found = discover(tmp_path).best(2, "val_loss")
    assert names(found) == ["epoch=2-val_loss=0.33.ckpt", "epoch=3-val_loss=0.33.ckpt"]
    (warning,) = found.warnings
    assert warning == (
        "equal at the cut: val_loss is 0.33 (as rounded in the file names) for epoch=2-val_loss=0.33.ckpt, "
        "epoch=3-val_loss=0.33.ckpt, taken because newer, and for epoch=0-val_loss=0.33.ckpt, "
        "epoch=1-val_loss=0.33.ckpt, left out"
    )


def test_no_tie_is_said_where_all_equal_ones_are_taken(tmp_path):
    save_lightning(tmp_path, (0.5, 0.25, 0.25), stored=False)
    assert discover(tmp_path).best(2, "val_loss").warnings == ()


def by_espnet(directory, values):
    for epoch in values:
        torch.save(WEIGHTS, directory / f"{epoch}epoch.pth")
    stats = {epoch: {"train": {"loss": 9.0}, "valid": {"acc": value}} for epoch, value in values.items()}
    torch.save({"model": WEIGHTS, "reporter": {"epoch": 4, "stats": stats}}, directory / "checkpoint.pth")
    return "valid.acc"


def by_funasr(directory, values):
    record = {f"model.pt.ep{epoch}": value for epoch, value in values.items()}
    for epoch in values:
        torch.save(
            {"state_dict": WEIGHTS, "epoch": epoch, "val_acc_step_or_epoch": record}, directory / f"model.pt.ep{epoch}"
        )
    return "val_acc"


def by_lightning_csv(directory, values):
    """In the directory above; a row for training steps, and one for each validation, by the update before."""
    (directory / "checkpoints").mkdir()
    rows = ["epoch,step,train_loss,val_acc"]
    for epoch, value in values.items():
        torch.save({"state_dict": WEIGHTS}, directory / "checkpoints" / f"epoch={epoch}-step={epoch * 50}.ckpt")
        rows += [f"{epoch},{epoch * 50 - 1},0.5,", f"{epoch},{epoch * 50 - 1},,{value}"]
    (directory / "metrics.csv").write_text("\n".join(rows))
    return "val_acc"


def by_json_lines(directory, values):
    for epoch in values:
        torch.save({"model": WEIGHTS, "epoch": epoch}, directory / f"checkpoint-{epoch}.pth")
    lines = [f'{{"epoch": {epoch}, "test_acc1": {value}}}' for epoch, value in values.items()]
    (directory / "log.txt").write_text("\n".join(["Namespace(batch_size=64)", *lines]))
    return "test_acc1"


def by_ultralytics(directory, values):
    (directory / "weights").mkdir()
    for epoch in values:
        torch.save({"model": WEIGHTS}, directory / "weights" / f"epoch{epoch}.pt")
    rows = ["epoch, metrics/mAP50", *(f"{epoch}, {value}" for epoch, value in values.items())]
    (directory / "results.csv").write_text("\n".join(rows))
    return "mAP50"


@pytest.mark.parametrize("write", [by_espnet, by_funasr, by_lightning_csv, by_json_lines, by_ultralytics])
def test_metrics_of_a_run_are_read_from_its_table(tmp_path, write):
    metric = write(tmp_path, {1: 0.5, 2: 0.9, 3: 0.7, 4: 0.6})
    (inside,) = [path for path in tmp_path.iterdir() if path.is_dir()] or [tmp_path]
    everything = names(discover(inside))
    assert len(everything) == 4
    assert names(discover(inside).best(2, metric, "max")) == everything[1:3]


BEYOND_FLOAT = "1" + "0" * 400


@pytest.mark.parametrize(
    ("file", "text", "refused"),
    [
        ("metrics.csv", "step,loss\nnan,1\ninf,2\n", None),
        ("metrics.csv", f"step,loss\n{'9' * 200_000},1\n", "not a table"),
        ("log.txt", '{"step": NaN, "loss": 1}\n{"step": Infinity, "loss": 1}\n', None),
        ("log.txt", f'{{"step": 2, "loss": {BEYOND_FLOAT}}}\n', None),
        ("trainer_state.json", '{"log_history": [{"step": Infinity, "loss": 1}]}', "not a trainer state"),
        ("trainer_state.json", f'{{"log_history": [{{"step": 2, "loss": {BEYOND_FLOAT}}}]}}', None),
        ("step_2_loss=0.2.yaml", "saved: 2001-99-99", "not valid YAML"),
        ("step_2_loss=0.2.yaml", "saved: !!bool maybe", "not valid YAML"),
        ("step_2_loss=0.2.yaml", "saved: !!timestamp yesterday", "not valid YAML"),
        ("step_2_loss=0.2.json", f'{{"loss": {BEYOND_FLOAT}}}', None),
    ],
)
def test_numbers_that_cannot_be_a_step_or_a_metric(tmp_path, file, text, refused):
    """Rows without a number are left out, so that the file name counts; a file that is not a table is refused."""
    for step in (1, 2, 3):
        torch.save(WEIGHTS, tmp_path / f"step_{step}_loss=0.{step}.pt")
    (tmp_path / file).write_text(text)
    if refused is None:
        assert names(discover(tmp_path).best(2, "loss")) == ["step_1_loss=0.1.pt", "step_2_loss=0.2.pt"]
    else:
        with pytest.raises(UnreadableError, match=refused):
            discover(tmp_path).best(2, "loss")


def test_a_whole_number_in_a_checkpoint_that_no_float_can_hold_is_not_a_metric(tmp_path):
    for step in (1, 2, 3):
        torch.save(
            {"model": WEIGHTS, "loss": int(BEYOND_FLOAT) if step == 2 else step / 10}, tmp_path / f"ckpt_{step}.pt"
        )
    with pytest.raises(NotFoundError, match=r"no metric 'loss' for ckpt_2\.pt"):
        discover(tmp_path).best(2, "loss")


def test_sockeye_numbers_its_rows_in_ascii_or_other_digits_only(tmp_path):
    for number in (1, 2):
        torch.save(WEIGHTS, tmp_path / f"params.{number:05d}")
    (tmp_path / "metrics").write_text("1\tloss=0.1\n2\tloss=0.2\n\u00b2\tloss=0.3\n", encoding="utf-8")
    assert names(discover(tmp_path, layout="sockeye").best(1, "loss")) == ["params.00001"]
