"""What is stored next to the weights in a checkpoint's directory: which of it an output gets, and which it does not.

Configurations, tokenizers, code, licences: a loader may ask for any file, so that everything is copied, in folders as
well, except for

* weights that are not averaged: other formats, other variants, checkpoints of their own;
* training state (`Layout.state`), unless it is asked for;
* logs, caches, temporary files;
* links that lead out of the checkpoint, or nowhere;
* what is too large, too deep, or not a file.

Everything that is left out is named, with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from ckpttool.errors import UnreadableError
from ckpttool.formats import CHECKPOINT_SUFFIXES
from ckpttool.reading.snapshot import Snapshot
from ckpttool.reading.storage import Item
from ckpttool.run_layouts import LAYOUTS, UNFINISHED, Reason
from ckpttool.tensors import Skipped

__all__ = ["MAX_FILE_BYTES", "Auxiliary", "AuxiliaryFile", "auxiliary_of", "is_training_state", "matches"]

MAX_FILE_BYTES = 1 << 30
"""The largest file that is copied. The largest vocabularies have some tens of megabytes."""

_MAX_FILES = 10_000
_MAX_DEPTH = 8

_KNOWN = tuple(dict.fromkeys(glob for row in LAYOUTS for glob in row.auxiliary))
_STATE = tuple(dict.fromkeys(glob for row in LAYOUTS for glob in row.state))

_FOREIGN = (
    *(".h5", ".keras", ".msgpack", ".onnx", ".onnx_data", ".gguf", ".ggml", ".ot", ".tflite", ".mlmodel", ".pb"),
    *(".pdiparams", ".pdopt", ".engine", ".pte", ".llamafile"),
)
_WEIGHTS = tuple(suffix for suffix in (*CHECKPOINT_SUFFIXES, *_FOREIGN) if suffix not in {".pkl", ".tar"})
_WEIGHTS_BY_NAME = re.compile(
    r".*\.data-\d{5}-of-\d{5}"  # TensorFlow
    r"|.*\.(?:safetensors|bin)\.index(?:\..*)?\.json|flax_model\.msgpack\.index\.json|tf_model\.h5\.index\.json"
    r"|openvino_(?!tokenizer|detokenizer)\w*\.xml"
    r"|(?:.*[._-])?(?:model|weights?|checkpoint|ckpt|network)(?:[._-].*)?\.(?:pkl|tar)"
)
_DATA_WORDS = frozenset(
    (
        *(
            "tokenizer",
            "detokenizer",
            "vocab",
            "vocabulary",
            "speaker",
            "speakers",
            "spk",
            "spk2info",
            "voice",
            "voices",
        ),
        *("gram", "2gram", "3gram", "4gram", "5gram", "6gram", "stats", "cmvn"),
    )
)
"""Words in the names of files and folders that hold tensors, or look like it, and that are data which a loader needs:
the voices of text-to-speech models, n-gram language models, pickled vocabularies."""

_IGNORED = (
    (
        r"\.(?:git|cache|ipynb_checkpoints|venv|idea|vscode|hg|svn|ruff_cache|mypy_cache|pytest_cache)",
        "a hidden folder",
    ),
    (r"\.DS_Store|\._.*|\.nfs.*|\.#.*|\..*\.sw[opx]|.*~|Thumbs\.db|desktop\.ini", "a temporary file"),
    (r"__pycache__|.*\.py[co]", "compiled code"),
    (
        r"runs|logs?|wandb|mlruns|tensorboard|tb_logs|lightning_logs|events\.out\.tfevents\..*|.*\.log|nohup\.out",
        Reason.LOGS.value,
    ),
    (UNFINISHED.pattern, Reason.HIDDEN.value),
)
_IGNORED_NAMES = tuple((re.compile(pattern), reason) for pattern, reason in _IGNORED)

_NOT_AVERAGED = "weights that are not averaged"


@dataclass(frozen=True, slots=True)
class AuxiliaryFile:
    """A file that is copied as it is.

    Attributes:
        name: Its path in the checkpoint's directory, with forward slashes.
        path: Where it is.
        nbytes: Its size.
        is_state: Whether it is training state, which is copied only where that is asked for.
    """

    name: str
    path: Path
    nbytes: int
    is_state: bool = False


@dataclass(frozen=True, slots=True)
class Auxiliary:
    """What is next to the weights.

    Attributes:
        files: What is copied, sorted by name.
        left_out: What is not, with the reasons; training state is not among it.
    """

    files: tuple[AuxiliaryFile, ...] = ()
    left_out: tuple[Skipped, ...] = ()

    @property
    def state(self) -> tuple[str, ...]:
        """The files and folders of the directory itself that are training state."""
        return tuple(dict.fromkeys(file.name.split("/")[0] for file in self.files if file.is_state))


def matches(name: str, globs: Iterable[str]) -> bool:
    """Whether a name or path fits one of the globs; globs without a slash look at the last component only."""
    last = name.rpartition("/")[2]
    return any(fnmatchcase(name if "/" in glob else last, glob) for glob in globs)


def is_training_state(name: str) -> bool:
    """Whether the path of a file or folder in a checkpoint's directory is that of training state."""
    return matches(name, _STATE)


def auxiliary_of(directory: Path, snapshot: Snapshot, taken: Collection[str]) -> Auxiliary:
    """Sort out what is next to the weights.

    Args:
        directory: The checkpoint.
        snapshot: The view of the storage.
        taken: Paths in the directory of files and folders that the format itself reads or writes. Folders in which such
            files are belong to the model: of other weights in there only the files are left out; any other folder that
            holds weights is left out as a whole.

    Raises:
        OSError: The directory may not be listed.
        UnreadableError: A link in the place of a file that the framework stores there leads nowhere.
    """
    return _Survey(directory, snapshot, taken).result()


def _is_weights(name: str) -> bool:
    """Whether a path is that of weights, by the name."""
    last = name.rpartition("/")[2].lower()
    if not last.endswith(_WEIGHTS) and not _WEIGHTS_BY_NAME.fullmatch(last):
        return False
    return _DATA_WORDS.isdisjoint(re.split(r"[^a-z0-9]+", name.lower()))


class _Survey:
    """A walk over one directory."""

    def __init__(self, directory: Path, snapshot: Snapshot, taken: Collection[str]) -> None:
        self._directory = directory
        self._snapshot = snapshot
        self._taken = frozenset(taken)
        self._models = {parent for name in taken for parent in _parents(name)}
        self._left_out: dict[str, str] = {}
        self._real: Path | None = None

    def result(self) -> Auxiliary:
        files = [file for name, item in self._listed("") for file in self._entry(name, item, is_state=False)]
        left_out = tuple(Skipped(self._directory / name, why) for name, why in sorted(self._left_out.items()))
        return Auxiliary(tuple(sorted(files, key=lambda file: file.name)), left_out)

    def _listed(self, folder: str) -> Iterator[tuple[str, Item]]:
        for name, item in self._snapshot.list(self._directory / folder).items():
            path = f"{folder}/{name}" if folder else name
            if path not in self._taken:
                yield path, item

    def _entry(self, name: str, item: Item, *, is_state: bool) -> list[AuxiliaryFile]:
        """The files that one entry of a directory gives; why it gives none is noted."""
        if not _is_unicode(name):
            return self._leave(name, "a name that is not Unicode")
        is_state = is_state or is_training_state(name)
        if item.kind == "missing":
            if not is_state and matches(name, _KNOWN):
                path = self._directory / name
                raise UnreadableError(
                    f"{path}: a link that leads nowhere",
                    path=path,
                    hint="Copy the file that it pointed to, or remove the link.",
                )
            return [] if is_state else self._leave(name, "a link that leads nowhere")
        if item.is_link and not self._leads_inside(name):
            return self._leave(name, "a link that leads out of the checkpoint")
        if item.kind == "directory":
            return self._folder(name, item, is_state=is_state)
        if item.kind != "file":
            return self._leave(name, "not a regular file")
        why = None if is_state else _reason(name)
        if why is None and item.nbytes > MAX_FILE_BYTES and not is_state:
            why = f"larger than {MAX_FILE_BYTES >> 30} GiB"
        if why is not None:
            return self._leave(name, why)
        return [AuxiliaryFile(name, self._directory / name, item.nbytes, is_state)]

    def _folder(self, name: str, item: Item, *, is_state: bool) -> list[AuxiliaryFile]:
        why = None if is_state or name in self._models else _ignored(name)
        if why is not None:
            return self._leave(name, why)
        if name.count("/") >= _MAX_DEPTH:
            return self._leave(name, f"more than {_MAX_DEPTH} folders deep")
        if item.is_link and self._snapshot.resolve(self._directory / name) in self._above(name):
            return self._leave(name, "a link that leads back")
        try:
            listed = list(self._listed(name))
        except OSError as error:
            return self._leave(name, f"cannot be listed: {error.strerror}")
        is_model = is_state or name in self._models
        if not is_model and any(
            each.kind == "file" and _reason(path) == _NOT_AVERAGED and not is_training_state(path)
            for path, each in listed
        ):
            return self._leave(name, _NOT_AVERAGED)
        before = dict(self._left_out)
        found: list[AuxiliaryFile] = []
        for path, each in listed:
            found += self._entry(path, each, is_state=is_state)
            if len(found) > _MAX_FILES:
                self._left_out = before
                return self._leave(name, f"more than {_MAX_FILES:,} files")
        return found

    def _leave(self, name: str, why: str) -> list[AuxiliaryFile]:
        self._left_out[name] = why
        return []

    # --- Links -----------------------------------------------------------------------------------------------------

    def _leads_inside(self, name: str) -> bool:
        """Whether a link leads into the checkpoint, or to where a download from the Hub keeps its files.

        Such a download is ``<repository>/snapshots/<revision>/``, whose files are links into ``<repository>/blobs/``.
        """
        roots = [self._root()]
        for above in roots[0].parents:
            if above.name == "snapshots":
                roots.append(above.parent / "blobs")
                break
        target = self._snapshot.resolve(self._directory / name)
        return any(root == target or root in target.parents for root in roots)

    def _root(self) -> Path:
        if self._real is None:
            self._real = self._snapshot.resolve(self._directory)
        return self._real

    def _above(self, name: str) -> set[Path]:
        """Where the directory and the folders around a name really are."""
        return {self._root(), *(self._snapshot.resolve(self._directory / parent) for parent in _parents(name))}


def _parents(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _ignored(name: str) -> str | None:
    last = name.rpartition("/")[2]
    return next((reason for pattern, reason in _IGNORED_NAMES if pattern.fullmatch(last)), None)


def _reason(name: str) -> str | None:
    """Why a file is not copied, by its name; None if it is."""
    if matches(name, _KNOWN) and not _WEIGHTS_BY_NAME.fullmatch(name.rpartition("/")[2].lower()):
        return None
    return _ignored(name) or (_NOT_AVERAGED if _is_weights(name) else None)
