"""The header of a .npy file: element type, order of dimensions, shape. Parsed and written by `numpy.lib.format`.

No array is loaded, and no pickle: a header is a literal of Python. bfloat16, which numpy does not know, is ``<V2``, as
ml_dtypes writes it. What does not fit raises `ValueError`.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from ckpttool.tensors import DTYPES, DType

if TYPE_CHECKING:
    import numpy as np

__all__ = ["CODES", "MAX_BYTES", "Header", "parse", "write"]

_MAX_TEXT = 10_000
"""Characters of a header, as many as `numpy.load` takes: longer literals may exhaust the parser's stack."""
MAX_BYTES = 12 + 4 * _MAX_TEXT
"""The longest header."""
_MAX_RANK = 64  # as in numpy

CODES: Mapping[str, str] = {
    "float64": "<f8",
    "float32": "<f4",
    "float16": "<f2",
    "bfloat16": "<V2",
    "complex128": "<c16",
    "complex64": "<c8",
    "int64": "<i8",
    "int32": "<i4",
    "int16": "<i2",
    "int8": "|i1",
    "uint64": "<u8",
    "uint32": "<u4",
    "uint16": "<u2",
    "uint8": "|u1",
    "bool": "|b1",
}
"""How each element type is written. float8 is missing: numpy cannot read one kind of it, and the others are all
``<V1``."""

_TYPES = {code[1:]: DTYPES[name] for name, code in CODES.items()}


@dataclass(frozen=True, slots=True)
class Header:
    """What a header says.

    Attributes:
        numpy_dtype: The element type as numpy has it.
        fortran: Whether the first dimension is the fastest.
        shape: The shape.
        nbytes: Length of the header with all that precedes the elements.
    """

    numpy_dtype: np.dtype[np.generic]
    fortran: bool
    shape: tuple[int, ...]
    nbytes: int

    @property
    def dtype(self) -> DType | None:
        """The element type; None for one that is not a number, or not known here."""
        return None if self.numpy_dtype.fields else _TYPES.get(self.numpy_dtype.str[1:])

    @property
    def big_endian(self) -> bool:
        """Whether the bytes of an element are in the other order."""
        return bool(self.numpy_dtype.str[0] == ">")

    @property
    def is_object(self) -> bool:
        """Whether the elements are a pickle, or hold one."""
        return bool(self.numpy_dtype.hasobject)

    @property
    def is_number(self) -> bool:
        """Whether the elements are numbers of some kind, known or not."""
        return bool(self.numpy_dtype.kind in "fciubV" and not self.numpy_dtype.fields)


def parse(start: bytes) -> Header:
    """Parse the header of which `start` is the beginning, or all.

    Raises:
        EOFError: It is longer than `start`.
        ValueError: It is not a header.
    """
    from numpy.lib import format as npy

    file = io.BytesIO(start)
    try:
        major, _ = npy.read_magic(file)
        if major not in {1, 2, 3}:
            _refuse(f"version {major} of .npy is not known")
        # Version 3 has the layout of version 2; its encoding is for names of fields.
        read = npy.read_array_header_1_0 if major == 1 else npy.read_array_header_2_0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of Python 2, which wrote 3L
            shape, fortran, dtype = read(file, max_header_size=_MAX_TEXT)
    except ValueError as error:
        if str(error).startswith("EOF"):
            raise EOFError(str(error)) from error
        raise
    except Exception as error:  # whatever the parser of literals makes of malformed text
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if len(shape) > _MAX_RANK or any(size < 0 or size >= 1 << 63 for size in shape):
        _refuse(f"the shape {str(shape)[:40]} is impossible")
    return Header(dtype, fortran, shape, file.tell())


def _refuse(why: str) -> NoReturn:
    raise ValueError(why)


def write(dtype: DType, shape: Sequence[int], *, fortran: bool) -> bytes:
    """A header as `numpy.save` writes it, byte for byte."""
    from numpy.lib import format as npy

    file = io.BytesIO()
    content = {"descr": CODES[dtype.name], "fortran_order": fortran, "shape": tuple(shape)}
    npy.write_array_header_1_0(file, content)
    return file.getvalue()
