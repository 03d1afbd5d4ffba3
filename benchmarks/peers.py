"""Averages as others do: `python peers.py NAME OUTPUT INPUT ...`, in an environment that has the package of NAME.

Each calls what the installed package offers. Exit code 3: the package is not there, or cannot take these files.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

NOT_HERE = 3


def load(path: str) -> dict[str, Any]:
    """The weights of a file as torch tensors."""
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(path)
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)["model"]


def save(tensors: dict[str, Any], output: str) -> None:
    """Write weights in the format of the inputs."""
    if output.endswith(".safetensors"):
        from safetensors.torch import save_file

        save_file(tensors, output)
    else:
        import torch

        torch.save({"model": tensors}, output)


def numpy_loop(output: str, inputs: list[str]) -> None:
    """A loop over files with safetensors and numpy, tensor by tensor, summed in float64."""
    import numpy as np
    from safetensors import safe_open
    from safetensors.numpy import save_file

    files = [safe_open(path, framework="numpy") for path in inputs]
    mean = {}
    for name in files[0].keys():  # noqa: SIM118
        total = files[0].get_tensor(name).astype(np.float64)
        for file in files[1:]:
            total += file.get_tensor(name)
        mean[name] = (total / len(files)).astype(files[0].get_tensor(name).dtype)
    save_file(mean, output)


def averaged_model(output: str, inputs: list[str]) -> None:
    """torch.optim.swa_utils.AveragedModel, which gets one checkpoint after the other."""
    import torch
    from torch.optim.swa_utils import AveragedModel

    first = load(inputs[0])
    model = torch.nn.Module()
    for index, tensor in enumerate(first.values()):
        model.register_parameter(str(index), torch.nn.Parameter(tensor, requires_grad=False))
    averaged = AveragedModel(model)
    averaged.update_parameters(model)
    for path in inputs[1:]:
        with torch.no_grad():
            for parameter, tensor in zip(model.parameters(), load(path).values(), strict=True):
                parameter.copy_(tensor)
        averaged.update_parameters(model)
    save({name: value.detach() for name, value in zip(first, averaged.module.parameters(), strict=True)}, output)


def mergekit(output: str, inputs: list[str]) -> None:
    """Mergekit's linear merge of model directories."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

    dtype = "float32" if "float32" in inputs[0] else "bfloat16" if "bfloat16" in inputs[0] else "float16"
    models = [{"model": path, "parameters": {"weight": 1.0}} for path in inputs]
    config = MergeConfiguration.model_validate({"merge_method": "linear", "models": models, "dtype": dtype})
    run_merge(config, output, options=MergeOptions(copy_tokenizer=False, write_model_card=False))


def opennmt(output: str, inputs: list[str]) -> None:
    """OpenNMT-py's average_models."""
    from onmt.bin.average_models import average_models

    average_models(inputs, output)


PEERS: dict[str, Callable[[str, list[str]], None]] = {
    "numpy-loop": numpy_loop,
    "AveragedModel": averaged_model,
    "mergekit": mergekit,
    "OpenNMT-py": opennmt,
}


def main() -> None:
    """Average."""
    name, output, *inputs = sys.argv[1:]
    cannot = {
        "mergekit": not Path(inputs[0]).is_dir(),
        "numpy-loop": not inputs[0].endswith(".safetensors") or "bfloat16" in inputs[0],  # numpy has no bfloat16
    }
    if cannot.get(name, Path(inputs[0]).is_dir()):
        sys.exit(NOT_HERE)
    try:
        PEERS[name](output, inputs)
    except ImportError as error:
        print(error, file=sys.stderr)
        sys.exit(NOT_HERE)


if __name__ == "__main__":
    main()
