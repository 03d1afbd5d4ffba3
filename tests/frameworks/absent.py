"""Stand-ins for torchvision and torchaudio, which timm and SpeechBrain import and their checkpoints do not need.

Neither has a build for every PyTorch that this project is tested with. What is installed is used.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any


class _Name(type):
    """A class whose attributes are further names: ``InterpolationMode.NEAREST``."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = _Name(name, (), {})
        setattr(cls, name, made)
        return made


class _Module(types.ModuleType):
    __version__ = "0.0"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = _Name(name, (), {})
        setattr(self, name, made)
        return made


class _Distribution(importlib.metadata.Distribution):
    def __init__(self, package: str) -> None:
        self._package = package

    def read_text(self, filename: str) -> str | None:
        return f"Metadata-Version: 2.1\nName: {self._package}\nVersion: 0.0\n" if filename == "METADATA" else None

    def locate_file(self, path: Any) -> Path:
        return Path(path)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name.split(".", maxsplit=1)[0] != self._package:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def find_distributions(self, context: importlib.metadata.DistributionFinder.Context) -> list[_Distribution]:
        """Some ask for the version before they import."""
        return [_Distribution(self._package)] if context.name in {None, self._package} else []

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def stand_in(package: str) -> None:
    """Let a package that is not installed be imported; nothing in it works."""
    if importlib.util.find_spec(package) is None:
        sys.meta_path.append(_Finder(package))
