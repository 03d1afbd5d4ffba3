"""A selection lists each directory once and opens each member once: counted, not timed."""

import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ckpttool.ema import locating, running_means
from ckpttool.ema.files import find_stored_average
from ckpttool.formats import container, open_checkpoint
from ckpttool.operations.stored_ema import list_averages
from ckpttool.reading.storage import LocalStorage
from ckpttool.selection import opening
from ckpttool.selection.discovery import discover, from_paths


@pytest.fixture
def counted(monkeypatch):
    """How often each directory is listed, through the storage or past it, and each checkpoint opened."""
    listed, opened = Counter(), Counter()
    past = {"scandir": os.scandir, "listdir": os.listdir}
    for name, function in past.items():

        def counting(path=".", function=function):
            listed[os.fspath(path)] += 1
            return function(path)

        monkeypatch.setattr(os, name, counting)
    original = opening.open_checkpoint

    def open_checkpoint(path, **options):
        opened[os.fspath(path)] += 1
        return original(path, **options)

    monkeypatch.setattr(opening, "open_checkpoint", open_checkpoint)
    return listed, opened


def save_huggingface(directory, steps):
    for step in steps:
        path = directory / f"checkpoint-{step}"
        path.mkdir(parents=True)
        save_file({"w": torch.full((4,), float(step))}, path / "model.safetensors")
        (path / "config.json").write_text("{}")
        (path / "trainer_state.json").write_text(f'{{"global_step": {step}, "log_history": []}}')


def test_the_last_eight_of_eight_directories(tmp_path, counted):
    save_huggingface(tmp_path, range(100, 900, 100))
    listed, opened = counted
    listed.clear()
    found = discover(tmp_path).last(8)
    assert [entry.step for entry in found.entries] == list(range(100, 900, 100))
    assert all(entry.checkpoint.weights for entry in found.entries)
    assert listed == {str(path): 1 for path in (tmp_path, *(entry.path for entry in found.entries))}
    assert opened == {str(entry.path): 1 for entry in found.entries}


def test_a_list_of_directories(tmp_path, counted):
    save_huggingface(tmp_path, (100, 200, 300))
    listed, opened = counted
    listed.clear()
    found = from_paths(sorted(tmp_path.iterdir()))
    assert all(entry.checkpoint.weights for entry in found.entries)
    assert {path: count for path, count in listed.items() if path != str(tmp_path)} == dict.fromkeys(
        (str(entry.path) for entry in found.entries), 1
    )
    assert set(opened.values()) == {1}


def test_files_whose_contents_order_them_are_opened_once(tmp_path, counted):
    for epoch in range(1, 7):
        torch.save({"model": {"w": torch.ones(2)}, "global_step": epoch * 50}, tmp_path / f"epoch_{epoch}.pth")
    torch.save({"model": {"w": torch.ones(2)}, "global_step": 300}, tmp_path / "last.pth")
    _, opened = counted
    found = discover(tmp_path).last(3)
    assert [entry.step for entry in found.entries] == [200, 250, 300]
    assert all(entry.checkpoint.weights for entry in found.entries)
    assert max(opened.values()) == 1


def test_what_is_opened_of_a_directory_is_decided_in_one_place(tmp_path):
    """By the library, by a discovery and by a list alike."""
    from ckpttool.formats import weights_file

    for step in (1, 2):
        path = tmp_path / f"step-{step:06d}" / "lit_model.pth"
        path.parent.mkdir()
        torch.save({"model": {"w": torch.full((4,), float(step))}}, path)
    found = discover(tmp_path)
    assert found.layout == "litgpt"
    for listed, entry in zip(from_paths([entry.path for entry in found.entries]).entries, found.entries, strict=True):
        ways = [open_checkpoint(entry.path), entry.checkpoint, listed.checkpoint]
        assert len({(way.path, way.format) for way in ways}) == 1
        assert weights_file(entry.path) == ways[0].path


def test_a_layout_says_which_file_of_a_directory_holds_the_weights(tmp_path):
    from ckpttool.errors import UnsupportedError
    from ckpttool.formats import weights_file

    torch.save({"w": torch.ones(4)}, tmp_path / "net.pth")
    (tmp_path / "log.pth").write_text("")
    assert weights_file(tmp_path, globs=["net*"]) == tmp_path / "net.pth"
    assert open_checkpoint(tmp_path, weights=["net*"]).path == tmp_path / "net.pth"
    with pytest.raises(UnsupportedError, match="no checkpoint of a known layout"):
        open_checkpoint(tmp_path)


def test_the_snapshot_lists_through_the_storage(tmp_path, monkeypatch):
    seen = []
    original = LocalStorage.list

    def listing(self, directory):
        seen.append(Path(directory))
        return original(self, directory)

    monkeypatch.setattr(LocalStorage, "list", listing)
    save_huggingface(tmp_path, (100, 200))
    discover(tmp_path).last(2)
    assert len(seen) == len(set(seen)) == 3


def save_diffusers(directory):
    """Weights and their average in directories of their own, as diffusers saves them."""
    for name, value in (("unet", 1.0), ("unet_ema", 2.0)):
        (directory / name).mkdir(parents=True)
        save_file({"w": torch.full((4,), value)}, directory / name / "diffusion_pytorch_model.safetensors")
        (directory / name / "config.json").write_text("{}")
    return directory


def save_nemo(directory):
    """Weights and their average in files next to each other, as NeMo saves them."""
    directory.mkdir()
    for name, value in (("last.ckpt", 1.0), ("last-EMA.ckpt", 2.0)):
        torch.save({"state_dict": {"w": torch.full((4,), value)}}, directory / name)
    return directory / "last.ckpt"


@pytest.mark.parametrize("save", [save_diffusers, save_nemo])
@pytest.mark.parametrize("ask", ["list", "find"])
def test_a_stored_average_is_found_with_one_look_at_each_directory(tmp_path, counted, save, ask):
    path = save(tmp_path / "run")
    listed, _ = counted
    listed.clear()
    if ask == "list":
        (one,) = list_averages([path])
        found = one.average
    else:
        found = find_stored_average(path)
    assert found.source is not found.checkpoint
    assert set(listed.values()) == {1}


def test_the_tree_of_a_running_mean_is_built_once(tmp_path, monkeypatch):
    weights = {"w": torch.ones(4)}
    path = tmp_path / "checkpoint-100.pt"
    torch.save({"model": weights, "model_avg": weights, "batch_idx_train": 100, "average_period": 50}, path)
    checkpoint = open_checkpoint(path)
    built = []

    def counting(checkpoint):
        built.append(checkpoint.path)
        return container.tree_of(checkpoint)

    for module in (locating, running_means):
        monkeypatch.setattr(module, "tree_of", counting)
    assert running_means.find_running_mean(checkpoint).count == 100
    assert built == [path]
