"""Checkpoints of frameworks whose formats are not read: what they are, and how to convert them.

They are told by what a file starts with, by the names in a directory, or by the keys of a pickle. Each gets one
sentence with the functions that turn its weights into a format that is read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase

__all__ = ["FOREIGN_SUFFIXES", "Foreign", "foreign_directory", "foreign_file", "foreign_pickle"]

_KERAS = (
    "Load each one with keras.saving.load_model(path) (or model.load_weights(path)) and write its arrays:"
    " numpy.savez('step-1.npz', *model.get_weights()). ckpttool averages the .npz files, and"
    " model.set_weights(list(numpy.load('averaged.npz').values())) takes the result. A tf_model.h5 of transformers:"
    " AutoModel.from_pretrained(directory, from_tf=True).save_pretrained(output)."
)
_FLAT = "numpy.savez('step-1.npz', **flax.traverse_util.flatten_dict(tree, sep='/'))"


@dataclass(frozen=True, slots=True)
class Foreign:
    """A format that is not read.

    Attributes:
        title: What it is, for messages.
        advice: What to do instead: one or two sentences.
        suffixes: Suffixes that its files usually have.
        heads: Whether a file that starts with these bytes is of it; None: the head says nothing.
        directory_names: Globs of which a directory of it has at least one name.
        pickle_keys: A pickled mapping with one of these keys is of it.
    """

    title: str
    advice: str
    suffixes: tuple[str, ...]
    heads: Callable[[bytes], bool] | None = None
    directory_names: tuple[str, ...] = ()
    pickle_keys: tuple[str, ...] = ()


def _is_hdf5(head: bytes) -> bool:
    return head.startswith(b"\x89HDF\r\n\x1a\n")


def _is_keras(head: bytes) -> bool:
    names = (b"metadata.json", b"config.json", b"model.weights.h5")
    return head.startswith(b"PK\x03\x04") and head[30:].startswith(names)


def _is_mxnet(head: bytes) -> bool:
    # The magic number of a list of NDArrays, and a reserved number.
    return head.startswith(b"\x12\x01" + bytes(14))


def _is_msgpack(head: bytes) -> bool:
    """A map whose first key is a text: what flax.serialization writes."""
    start = {0xDE: 3, 0xDF: 5}.get(head[0], 1 if 0x81 <= head[0] <= 0x8F else 0) if head else 0
    key = head[start : start + 2]
    if not start or len(key) < 2:
        return False
    begin, length = (1, key[0] & 0x1F) if 0xA1 <= key[0] <= 0xBF else (2, key[1]) if key[0] == 0xD9 else (0, 0)
    name = head[start + begin : start + begin + length]
    return bool(name) and len(name) == length and name.isascii() and name.decode().isprintable()


_FORMATS = (
    Foreign("a Keras model (.keras)", _KERAS, (".keras",), _is_keras),
    Foreign("an HDF5 file, as Keras writes them", _KERAS, (".weights.h5", ".h5", ".hdf5"), _is_hdf5),
    Foreign(
        "parameters of MXNet",
        "Write its arrays: numpy.savez('step-1.npz', **{name: array.asnumpy() for name, array in"
        " mxnet.nd.load(path).items()}). ckpttool averages the .npz files, and mxnet.nd.save takes the result.",
        (".params",),
        _is_mxnet,
    ),
    Foreign(
        "a Flax checkpoint (msgpack)",
        f"tree = flax.serialization.msgpack_restore(open(path, 'rb').read()) gives the arrays, and {_FLAT} writes them:"
        " ckpttool averages the .npz files. A flax_model.msgpack of transformers:"
        " AutoModel.from_pretrained(directory, from_flax=True).save_pretrained(output).",
        (".msgpack",),
        _is_msgpack,
    ),
    Foreign(
        "an Orbax checkpoint (JAX, Flax)",
        f"tree = orbax.checkpoint.PyTreeCheckpointer().restore(path) gives the arrays, and {_FLAT} writes those of the"
        " parameters: ckpttool averages the .npz files.",
        (),
        directory_names=("_CHECKPOINT_METADATA", "manifest.ocdbt", "ocdbt.process_*", "_METADATA"),
    ),
    Foreign(
        "a checkpoint of PaddlePaddle",
        "Write its arrays: numpy.savez('step-1.npz', **{name: value.numpy() for name, value in"
        " paddle.load(path).items()})."
        " ckpttool averages the .npz files, and model.set_state_dict takes the result.",
        (".pdparams", ".pdopt"),
        pickle_keys=("StructuredToParameterName@@",),
    ),
)

FOREIGN_SUFFIXES: tuple[str, ...] = tuple(suffix for row in _FORMATS for suffix in row.suffixes)
"""Suffixes of checkpoints that are not read."""


def foreign_file(head: bytes) -> Foreign | None:
    """The format of a file that starts like this, where it is one that is known and not read."""
    return next((row for row in _FORMATS if row.heads is not None and row.heads(head)), None)


def foreign_directory(names: Collection[str]) -> Foreign | None:
    """The format of a directory with these names in it, where it is one that is known and not read."""
    found = (row for row in _FORMATS for glob in row.directory_names for name in names if fnmatchcase(name, glob))
    return next(found, None)


def foreign_pickle(keys: Collection[object], suffix: str) -> Foreign | None:
    """The format of a pickled mapping with these keys in a file with this suffix, where it is known and not read."""
    return next(
        (row for row in _FORMATS if row.pickle_keys and (suffix in row.suffixes or set(row.pickle_keys) & set(keys))),
        None,
    )
