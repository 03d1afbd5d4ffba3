"""The objects in a torch pickle that represent tensors: from inert object to `TensorSpec`, and back.

A tensor is pickled as a call of one of torch's rebuild functions, with a storage (a persistent id), an offset, sizes
and strides; a Parameter is such a call around a tensor. The names are those of ``torch/_utils.py`` and
``torch/_tensor.py`` from PyTorch 0.4 to 2.13.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ckpttool.errors import UnreadableError
from ckpttool.formats.pickles.inert import Inert, InertType, inert_type
from ckpttool.tensors import DTYPES, DType, Extent, OutputTensor, TensorSpec, c_strides

__all__ = [
    "STORAGE_ITEMSIZES",
    "NewStorage",
    "Refused",
    "StorageRef",
    "Storages",
    "TensorReader",
    "new_tensor",
    "replaced",
    "storage_ref",
]

_STORAGE_DTYPES: Mapping[str, DType] = {
    f"{name}Storage": DTYPES[dtype]
    for name, dtype in {
        "Double": "float64",
        "Float": "float32",
        "Half": "float16",
        "BFloat16": "bfloat16",
        "Long": "int64",
        "Int": "int32",
        "Short": "int16",
        "Char": "int8",
        "Byte": "uint8",
        "Bool": "bool",
        "ComplexDouble": "complex128",
        "ComplexFloat": "complex64",
    }.items()
}

STORAGE_ITEMSIZES: Mapping[str, int] = {
    **{name: dtype.itemsize for name, dtype in _STORAGE_DTYPES.items()},
    "UntypedStorage": 1,
    "QInt8Storage": 1,
    "QUInt8Storage": 1,
    "QUInt4x2Storage": 1,
    "QUInt2x4Storage": 1,
    "QInt32Storage": 4,
}
"""Bytes of an element, by the storage's class."""

_STORAGE_OF = {dtype.name: name for name, dtype in _STORAGE_DTYPES.items()}

_PLAIN_REBUILDS = frozenset({"_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"})
_WRAPPERS = frozenset({"_rebuild_parameter", "_rebuild_parameter_with_state"})
_MODULES = frozenset({"torch._utils", "torch._tensor"})

_KINDS = {
    "_rebuild_qtensor": "a quantized tensor",
    "_rebuild_sparse_tensor": "a sparse tensor",
    "_rebuild_sparse_csr_tensor": "a sparse tensor",
    "_rebuild_nested_tensor": "a nested tensor",
    "_rebuild_meta_tensor_no_storage": "a meta tensor, which has no data",
    "_rebuild_wrapper_subclass": "a tensor of a wrapping class (a distributed or quantized one)",
    "_rebuild_device_tensor_from_numpy": "a tensor of a device that stores a NumPy array",
    "_rebuild_device_tensor_from_cpu_tensor": "a tensor of a device that stores another tensor",
    "_rebuild_xla_tensor": "an XLA tensor",
    "_rebuild_mlc_tensor": "an MLC tensor",
}

_MAX_DIMENSIONS = 64
_MAX_NUMEL = 1 << 60
_MAX_REPEATED = 1 << 28
"""Bytes that a view which repeats elements of its storage may stand for."""


class StorageRef(NamedTuple):
    """A storage, as a persistent id names it.

    A tuple, because nothing in a pickle can change one.

    Attributes:
        cls: Its class: ``torch.FloatStorage``.
        key: Its name in the file.
        numel: Elements of the whole storage.
        view: (key, first element, elements) where it is a part of that storage; only in the format before 1.6.
    """

    cls: InertType
    key: str
    numel: int
    view: tuple[str, int, int] | None = None


_make_ref = tuple.__new__


@dataclass(frozen=True, slots=True)
class NewStorage:
    """A storage that the output shall have.

    Attributes:
        slot: What fills it.
        cls: Its class.
        numel: As the class counts.
    """

    slot: tuple[str, str]
    cls: InertType
    numel: int


@dataclass(frozen=True, slots=True)
class Refused:
    """A tensor that cannot be averaged: what it is, in words."""

    kind: str


def storage_ref(pid: Any) -> Any:
    """The object in a graph that represents a persistent id.

    Raises:
        pickle.UnpicklingError: It is not one that torch writes.
    """
    if type(pid) is tuple and len(pid) in {5, 6} and pid[0] == "storage":
        _, cls, key, location, numel, view = pid if len(pid) == 6 else (*pid, None)
        if (
            isinstance(cls, InertType)
            and type(key) is str
            and type(location) is str
            and type(numel) is int
            and 0 <= numel <= _MAX_NUMEL
            and (view is None or _is_view(view))
        ):
            return _make_ref(StorageRef, (cls, key, numel, view))
    elif type(pid) is tuple and len(pid) >= 2 and pid[0] == "module" and isinstance(pid[1], InertType):
        return pid[1]  # a class, with its source code next to it; torch before 1.6 wrote that
    raise pickle.UnpicklingError("a persistent id that is not a storage's")


def _is_view(view: Any) -> bool:
    return (
        type(view) is tuple
        and len(view) == 3
        and type(view[0]) is str
        and all(type(number) is int and 0 <= number <= _MAX_NUMEL for number in view[1:])
    )


@dataclass(frozen=True)
class Storages:
    """Where a file keeps its storages.

    Attributes:
        path: The file.
        extent: Gives the bytes of a whole storage; raises UnreadableError if they are not in the file.
        big_endian: Whether their elements are.
    """

    path: Path
    extent: Callable[[StorageRef], Extent]
    big_endian: bool = False


class TensorReader:
    """Tells tensors among the objects of a graph, and where their bytes are."""

    def __init__(self, storages: Storages) -> None:
        self.storages = storages
        # By id(), with the object itself, so that no other can take its place there.
        self._known: dict[int, tuple[Inert, TensorSpec]] = {}
        self._extents: dict[str, Extent] = {}

    def read(self, node: Any) -> TensorSpec | Refused | None:
        """What an object is: a tensor, one that cannot be averaged, or no tensor.

        Raises:
            UnreadableError: It is a tensor whose numbers cannot be true.
        """
        known = self._known.get(id(node))
        if known is not None:
            return known[1]
        outer = node
        for _ in range(4):  # a Parameter around a tensor of a subclass around a plain one is as deep as it gets
            if not isinstance(node, Inert) or node.maker is not None or node.module not in _MODULES:
                return None
            name, args = node.name, node.args
            if name in _PLAIN_REBUILDS:
                found = self._spec(name, args)
                if type(found) is TensorSpec:
                    self._known[id(outer)] = (outer, found)
                return found
            if name in _WRAPPERS and args:
                node = args[0]
            elif name == "_rebuild_from_type_v2" and len(args) >= 3:
                function, _, inner = args[:3]
                if not isinstance(function, InertType) or type(inner) is not tuple:
                    return Refused("a tensor subclass")
                node = function(*inner)
                if node.module not in _MODULES:
                    return Refused(f"a tensor that {node.qualified} builds")
            elif name in _KINDS:
                return Refused(_KINDS[name])
            else:
                return Refused(f"a tensor that {node.qualified} builds") if name.startswith("_rebuild_") else None
        return Refused("a tensor of nested subclasses")

    def _spec(self, name: str, args: tuple[Any, ...]) -> TensorSpec | Refused:
        if len(args) < 4 or type(args[0]) is not StorageRef:
            raise self._bad("a tensor without a storage")
        ref, offset, shape, strides = args[:4]
        if isinstance(shape, Inert) and shape.qualified == "torch.Size" and shape.args:
            shape = shape.args[0]
        dtype = _STORAGE_DTYPES.get(ref.cls.name)
        metadata = args[6] if len(args) > 6 else None
        if name == "_rebuild_tensor_v3":
            if len(args) < 7 or not isinstance(args[6], InertType) or args[6].module != "torch":
                raise self._bad("a tensor without an element type")
            dtype = DTYPES.get(args[6].name)
            if dtype is None:
                return Refused(f"a tensor of the element type {args[6].name}")
            if ref.cls.name not in STORAGE_ITEMSIZES:
                return Refused(f"a tensor in a {ref.cls.name}")
            metadata = args[7] if len(args) > 7 else None
        if dtype is None:
            return Refused(f"a tensor in a {ref.cls.name}")
        if type(metadata) is dict and any(metadata.values()):
            return Refused("a conjugate or negative view")
        if (
            type(shape) not in {tuple, list}
            or type(strides) not in {tuple, list}
            or len(shape) != len(strides)
            or len(shape) > _MAX_DIMENSIONS
            or type(offset) is not int
            or offset < 0
        ):
            raise self._bad("a tensor without sizes and strides")
        numel, last, is_c = 1, offset, True
        for size, stride in zip(reversed(shape), reversed(strides), strict=True):
            if type(size) is not int or type(stride) is not int or size < 0 or stride < 0:
                raise self._bad("a tensor of impossible sizes or strides", ref)
            is_c = is_c and stride == numel
            numel *= size
            last += (size - 1) * stride
        storage = self._extent(ref)
        held = storage.nbytes // dtype.itemsize
        if ref.view is not None:
            _, first, held = ref.view
            offset, last, held = offset + first, last + first, min(held + first, storage.nbytes // dtype.itemsize)
        if numel and last >= held:
            raise self._bad(f"a tensor reaches to element {last} of a storage of {held}", ref)
        if numel * dtype.itemsize > max(storage.nbytes, _MAX_REPEATED):
            raise self._bad(f"a view repeats {storage.nbytes} bytes to {numel * dtype.itemsize}", ref)
        big_endian = self.storages.big_endian and dtype.itemsize > 1
        if is_c and numel:
            return TensorSpec(dtype, tuple(shape), storage, offset, None, big_endian)
        return TensorSpec.view(
            dtype, storage, offset if numel else 0, tuple(shape), tuple(strides), big_endian=big_endian
        )

    def _extent(self, ref: StorageRef) -> Extent:
        known = self._extents.get(ref.key)
        if known is None:
            known = self._extents[ref.key] = self.storages.extent(ref)
        itemsize = STORAGE_ITEMSIZES[ref.cls.name]
        if known.nbytes != ref.numel * itemsize:
            raise self._bad(f"{known.nbytes} bytes where {ref.numel} elements of {itemsize} should be", ref)
        return known

    def _bad(self, what: str, ref: StorageRef | None = None) -> UnreadableError:
        where = "" if ref is None else f" (storage {ref.key[:40]})"
        return UnreadableError(
            f"{self.storages.path}: {what}{where}",
            path=self.storages.path,
            hint="The file is malformed, by damage or on purpose.",
        )


_REBUILD_V2 = inert_type("torch._utils", "_rebuild_tensor_v2")
_REBUILD_V3 = inert_type("torch._utils", "_rebuild_tensor_v3")
_ORDERED_DICT = inert_type("collections", "OrderedDict")
_UNTYPED = inert_type("torch.storage", "UntypedStorage")
_TYPED = {name: inert_type("torch", name) for name in _STORAGE_DTYPES}
_ELEMENT_TYPES = {name: inert_type("torch", name) for name in DTYPES}


def _arguments(slot: tuple[str, str], tensor: OutputTensor) -> tuple[NewStorage, int, tuple[int, ...], tuple[int, ...]]:
    name = _STORAGE_OF.get(tensor.dtype.name)
    storage = (
        NewStorage(slot, _UNTYPED, tensor.nbytes)
        if name is None
        else NewStorage(slot, _TYPED[name], tensor.nbytes // tensor.dtype.itemsize)
    )
    return storage, 0, tensor.shape, c_strides(tensor.shape) if tensor.strides is None else tensor.strides


def new_tensor(slot: tuple[str, str], tensor: OutputTensor) -> Inert:
    """The object of a tensor that fills a storage of its own."""
    return _rebuild(_arguments(slot, tensor), tensor.dtype, (False, _ORDERED_DICT()))


def _rebuild(
    arguments: tuple[Any, ...], dtype: DType, grad_and_hooks: tuple[Any, ...], metadata: tuple[Any, ...] = ()
) -> Inert:
    if dtype.name in _STORAGE_OF:
        return _REBUILD_V2(*arguments, *grad_and_hooks, *metadata)
    return _REBUILD_V3(*arguments, *grad_and_hooks, _ELEMENT_TYPES[dtype.name], *metadata)


def replaced(node: Inert, slot: tuple[str, str], tensor: OutputTensor) -> Inert:
    """The object of a tensor with other contents: whatever else it is (a Parameter, a subclass) it stays."""
    name, args = node.name, node.args
    if name in _PLAIN_REBUILDS:
        grad_and_hooks = args[4:6] if len(args) >= 6 else (False, _ORDERED_DICT())
        made = _rebuild(_arguments(slot, tensor), tensor.dtype, grad_and_hooks, args[7 if name.endswith("v3") else 6 :])
    elif name in _WRAPPERS:
        made = type(node)(replaced(args[0], slot, tensor), *args[1:])
    else:  # _rebuild_from_type_v2
        function, cls, inner = args[:3]
        plain = replaced(function(*inner), slot, tensor)
        made = type(node)(type(plain), cls, plain.args, *args[3:])
    made.states = node.states
    made.update(node)
    return made
