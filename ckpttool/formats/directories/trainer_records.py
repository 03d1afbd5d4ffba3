"""What Hugging Face's trainer and models say beside the weights: step, metrics, element type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ckpttool.errors import CkpttoolError
from ckpttool.formats.directories.common import load_json

__all__ = ["TRAINER_STATE", "stated_dtype", "trainer_state"]

TRAINER_STATE = "trainer_state.json"


def trainer_state(path: Path, notes: list[str]) -> tuple[int | None, dict[str, Any]]:
    """The step, and the plain values, of the trainer's record."""
    place = path / TRAINER_STATE
    if not place.is_file():
        return None, {}
    try:
        content = load_json(place)
    except CkpttoolError:
        notes.append(f"{TRAINER_STATE} cannot be read")
        return None, {}
    if not isinstance(content, dict):
        return None, {}
    plain = {key: value for key, value in content.items() if isinstance(value, (int, float, str))}
    step = content.get("global_step")
    return step if type(step) is int and step >= 0 else None, plain


def stated_dtype(path: Path) -> dict[str, Any]:
    """The element type that the configuration states, by which transformers loads the weights."""
    place = path / "config.json"
    try:
        content = load_json(place) if place.is_file() else {}
    except CkpttoolError:
        return {}
    stated = content.get("dtype", content.get("torch_dtype")) if isinstance(content, dict) else None
    return {"config.dtype": stated} if isinstance(stated, str) else {}
