"""Files are told apart by their content."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ckpttool.formats import open_checkpoint


@pytest.mark.parametrize("length", range(632, 665, 8))
def test_a_safetensors_file_is_one_also_where_its_length_looks_like_a_pickle(length: int, tmp_path: Path) -> None:
    """The length of the header comes first: 640 is 80 02 in bytes, which is how a pickle begins."""
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(2)}, path)
    plain = int.from_bytes(path.read_bytes()[:8], "little")
    # The writer pads to a multiple of 8: of 8 lengths in a row one gives this header.
    for padding in range(length - plain - 40, length - plain):
        save_file({"weight": torch.ones(2)}, path, metadata={"x": "y" * padding})
        if int.from_bytes(path.read_bytes()[:8], "little") == length:
            break
    assert int.from_bytes(path.read_bytes()[:8], "little") == length
    assert open_checkpoint(path).format == "safetensors"
