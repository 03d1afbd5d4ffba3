"""Files are told apart by their content."""

from __future__ import annotations

import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ckpttool.errors import UnsupportedError
from ckpttool.formats import open_checkpoint

ROOT = Path(__file__).parent.parent


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


@pytest.mark.parametrize("form", ["files", "directory"])
def test_averaging_safetensors_files_imports_the_module_of_no_other_format(form: str, tmp_path: Path) -> None:
    paths = [tmp_path / f"step-{step}.safetensors" for step in (1, 2)]
    for number, path in enumerate(paths):
        save_file({"weight": torch.full((2,), float(number))}, path)
    named = [str(path) for path in paths] if form == "files" else [str(tmp_path)]
    code = f"import ckpttool, sys; ckpttool.average({named!r}, output={str(tmp_path / 'avg.safetensors')!r})"
    ran = subprocess.run(
        [sys.executable, "-c", f"{code}; print(*sys.modules)"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {name for name in ran.stdout.split() if name.startswith("ckpttool.formats.")}
    assert "ckpttool.formats.safetensors" in loaded
    packages = {name.split(".")[2] for name in loaded}
    assert packages & {"pytorch", "dcp", "directories", "tensorflow", "npz", "pickles", "archives"} == set()


def keras(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("metadata.json", "config.json", "model.weights.h5"):
            archive.writestr(name, b"{}")


def orbax(path: Path) -> None:
    path.mkdir()
    for name in ("_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt"):
        (path / name).write_bytes(b"{}")


MSGPACK = b"\x82\xa6params\x81\xa5Dense\x80\xa4step\x07"
"""What ``msgpack.packb({"params": {"Dense": {}}, "step": 7})`` gives."""


@pytest.mark.parametrize(
    ("name", "write", "function"),
    [
        ("model.weights.h5", lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100)), "get_weights"),
        ("model.keras", keras, "keras.saving.load_model"),
        ("net-0010.params", lambda path: path.write_bytes(struct.pack("<3Q", 0x112, 0, 2)), "mxnet.nd.load"),
        ("checkpoint_100", lambda path: path.write_bytes(MSGPACK), "flax.serialization.msgpack_restore"),
        ("100", orbax, "orbax.checkpoint"),
        (
            "model.pdparams",
            lambda path: path.write_bytes(pickle.dumps({"w": np.ones(2), "StructuredToParameterName@@": {}}, 4)),
            "paddle.load",
        ),
    ],
)
def test_a_checkpoint_of_another_framework_is_named_with_what_converts_it(
    name: str, write: Callable[[Path], None], function: str, tmp_path: Path
) -> None:
    """Whatever its name is: the content tells."""
    for path in (tmp_path / name, tmp_path / "unnamed"):
        write(path)
        with pytest.raises(UnsupportedError, match="which is not read") as caught:
            open_checkpoint(path)
        assert function in (caught.value.hint or "")
