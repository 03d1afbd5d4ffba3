"""The header of a .npy file: element type, order of dimensions, shape. Never a pickle.

    magic "\\x93NUMPY", version (two bytes), length of the text (uint16 in version 1, uint32 in 2 and 3),
    text {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }, spaces, newline; then the elements

numpy/lib/format.py. The text is a Python literal; here it is matched, not evaluated. bfloat16, which numpy does not
know, stands as ``<V2`` (ml_dtypes writes it so), float8_e5m2 as ``<f1``. What does not fit raises `ValueError`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ckpttool.tensors import DTYPES, DType

__all__ = ["CODES", "MAX_BYTES", "MAX_FIXED", "NpyHeader", "header_length", "parse", "write"]

MAX_FIXED = 12
"""Bytes that may precede the text."""
MAX_BYTES = 1 << 20
"""Of the text; numpy itself stops at 10,000 characters unless told to trust the file."""

_MAGIC = b"\x93NUMPY"
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
"""How each element type is written. float8 is missing: four kinds of it would all be ``<V1``."""

_TYPES = {code[1:]: DTYPES[name] for name, code in CODES.items()} | {"f1": DTYPES["float8_e5m2"]}

_ITEM = (
    r"'(?:descr'\s*:\s*'(?P<descr>[^'\\]{0,64})'"
    r"|descr'\s*:\s*(?P<fields>\[.*\])"
    r"|fortran_order'\s*:\s*(?P<fortran>True|False)"
    r"|shape'\s*:\s*\((?P<shape>[\d\s,L]*)\))"
)
_NEXT = re.compile(rf"\s*{_ITEM}\s*(?:,|(?=\}}))", re.DOTALL)
_SIZE = re.compile(r"\d{1,19}")


@dataclass(frozen=True, slots=True)
class NpyHeader:
    """What a header says.

    Attributes:
        descr: The element type as numpy writes it; ``[...]`` for a structured one.
        fortran: Whether the first dimension is the fastest.
        shape: The shape.
        nbytes: Length of the header with all that precedes the elements.
    """

    descr: str
    fortran: bool
    shape: tuple[int, ...]
    nbytes: int

    @property
    def dtype(self) -> DType | None:
        """The element type; None for one that is no number or that ckpttool does not know."""
        return _TYPES.get(self.descr[1:] if self.descr[:1] in "<>|=" else self.descr)

    @property
    def big_endian(self) -> bool:
        """Whether the bytes of an element stand in the other order."""
        return self.descr[:1] == ">" and self.dtype is not None and self.dtype.itemsize > 1

    @property
    def is_object(self) -> bool:
        """Whether the elements are a pickle."""
        return self.descr.lstrip("<>|=")[:1] == "O" or (
            self.descr[:1] == "[" and re.search(r"'[|<>=]?O\d*'", self.descr) is not None
        )

    @property
    def is_number(self) -> bool:
        """Whether the elements are numbers of some kind, known or not."""
        return self.dtype is not None or self.descr.lstrip("<>|=")[:1] in tuple("fciubV")


def header_length(start: bytes) -> int:
    """The length of a header, given its first `MAX_FIXED` bytes (or fewer, if the file has no more)."""
    if start[:6] != _MAGIC or len(start) < 10:
        raise ValueError("it is no .npy file")
    if start[6] not in {1, 2, 3}:
        raise ValueError(f"version {start[6]} of .npy is not known")
    width = 2 if start[6] == 1 else 4
    length = int.from_bytes(start[8 : 8 + width], "little")
    if length > MAX_BYTES or len(start) < 8 + width:
        raise ValueError("its header is too long or cut off")
    return 8 + width + length


def parse(header: bytes) -> NpyHeader:
    """Parse a whole header: as many bytes as `header_length` says."""
    if len(header) != header_length(header[:MAX_FIXED]):
        raise ValueError("its header is cut off")
    text = header[10 if header[6] == 1 else 12 :].decode("utf-8" if header[6] == 3 else "latin-1").strip()
    if text[:1] != "{" or text[-1:] != "}":
        raise ValueError(f"its header is no dictionary ({text[:40]!r})")
    found: dict[str, str] = {}
    position = 1
    while text[position:].strip() != "}":
        match = _NEXT.match(text, position)
        if match is None:
            raise ValueError(f"its header is damaged at {text[position : position + 40]!r}")
        for name, value in match.groupdict().items():
            if value is not None:
                key = "descr" if name == "fields" else name
                if key in found:
                    raise ValueError(f"its header says {key} twice")
                found[key] = value
        position = match.end()
    if len(found) != 3:
        raise ValueError("its header is not complete")
    return NpyHeader(found["descr"], found["fortran"] == "True", _shape(found["shape"]), len(header))


def _shape(text: str) -> tuple[int, ...]:
    parts = [part.strip().removesuffix("L") for part in text.split(",")]  # Python 2 wrote 3L
    if parts and not parts[-1]:
        parts.pop()
    if len(parts) > _MAX_RANK or not all(_SIZE.fullmatch(part) for part in parts):
        raise ValueError(f"the shape ({text[:40]}) cannot be")
    return tuple(int(part) for part in parts)


def write(dtype: DType, shape: Sequence[int], *, fortran: bool) -> bytes:
    """A header as `numpy.save` writes it, byte for byte: a multiple of 64 long, with room for the array to grow."""
    dims = f"({', '.join(str(size) for size in shape)}{',' if len(shape) == 1 else ''})"
    text = f"{{'descr': '{CODES[dtype.name]}', 'fortran_order': {fortran}, 'shape': {dims}, }}"
    if shape:
        text += " " * (21 - len(str(shape[-1 if fortran else 0])))
    version, fixed = (1, 10) if len(text) + 75 < 1 << 16 else (2, 12)
    text += " " * (-(fixed + len(text) + 1) % 64) + "\n"
    return _MAGIC + bytes([version, 0]) + len(text).to_bytes(fixed - 8, "little") + text.encode("latin-1")
