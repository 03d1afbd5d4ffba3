"""Bounds of a pickle, checked before an unpickler sees it.

The unpickler of the standard library is written in C and trusts its input in ways that hurt: a memo index of
0xffffffff makes it allocate gigabytes, a length is allocated before it is read, and a tuple that holds itself twice,
thirty levels deep, used as a key, is hashed for hours or overflows the C stack. `check` steps over the opcodes
without building anything, with every stack slot reduced to one number: what hashing it would cost.

The opcodes are those of CPython's ``Lib/pickletools.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["MAX_HASH_COST", "MAX_NESTING", "BadPickleError", "check"]

MAX_NESTING = 200
"""Tuples inside tuples. What hashes them recurses in C."""

MAX_HASH_COST = 50_000_000
"""Elements that hashing all keys of a pickle may visit, shared parts counted each time."""

_MAX_DIGITS = 4300
"""Of a decimal number: reading one takes time that grows with the square (CPython's own limit since 3.11)."""

_PLAIN = 1
"""The cost of a value that is not a tuple: depth 0, one element."""

_DEPTH = 1 << 40
"""A cost is depth * _DEPTH + elements."""


class BadPickleError(ValueError):
    """The bytes are not a pickle, or one that must not be given to an unpickler."""


# What an opcode does to the stack.
_PUSH, _TEXT, _LENGTH, _MARK, _TUPLE, _NTUPLE, _GET, _PUT, _TO_MARK, _POPS, _OTHER = range(11)

_ACTIONS: list[tuple[int, int, int]] = [(-1, 0, 0)] * 256
"""By opcode: (action, a, b); what a and b are depends on the action."""


def _fill(codes: Iterable[int] | bytes, action: int, a: int = 0, b: int = 0) -> None:
    for code in codes:
        _ACTIONS[code] = (action, a, b)


_fill(b"N\x88\x89)]}\x8f\x97", _PUSH, 1)  # a: bytes of the instruction
_fill(b"K", _PUSH, 2)
_fill(b"M", _PUSH, 3)
_fill(b"J", _PUSH, 5)
_fill(b"G", _PUSH, 9)
_fill(b"ILFSVP", _TEXT, 1, 1)  # a: lines, b: values pushed
_fill(b"c", _TEXT, 2, 1)
_fill(b"\x8cCU\x8a", _LENGTH, 1)  # a: bytes of the length
_fill(b"XBT\x8b", _LENGTH, 4)
_fill(b"\x8d\x8e\x96", _LENGTH, 8)
_fill(b"(", _MARK)
_fill(b"t\x91", _TUPLE)
_fill(b"\x85", _NTUPLE, 1)
_fill(b"\x86", _NTUPLE, 2)
_fill(b"\x87", _NTUPLE, 3)
_fill(b"h", _GET, 1)  # a: bytes of the index
_fill(b"j", _GET, 4)
_fill(b"q", _PUT, 1)
_fill(b"r", _PUT, 4)
_fill(b"eu\x90", _TO_MARK, 0)  # a: values pushed after everything down to the mark is gone
_fill(b"dlo", _TO_MARK, 1)
_fill(b"ab", _POPS, 1, 0)  # a: values popped, b: values pushed
_fill(b"s", _POPS, 2, 0)
_fill(b"Q\x98", _POPS, 1, 1)
_fill(b"R\x81\x93", _POPS, 2, 1)
_fill(b"\x92", _POPS, 3, 1)
_fill(b"i012gp\x80\x82\x83\x84\x94\x95.", _OTHER)

_PUT_INDEX = rb"(?:q.|r..[\x00-\x03]\x00)"
_GET_INDEX = rb"(?:h.|j....)"
_INT = rb"(?:K.|M..|J....)"
_SIZES = (
    rb"(?:\)|" + _INT + rb"(?:\x85|" + _INT + rb"(?:\x86|" + _INT + rb"\x87))" + _PUT_INDEX
    + rb"|\((?:" + _INT + rb"){4,8}t" + _PUT_INDEX + rb")"
)  # fmt: skip
_KEY = rb"X(?:" + b"|".join(rb"\x%02x\0\0\0.{%d}" % (length, length) for length in range(1, 17)) + rb")"

_TENSOR = re.compile(
    _GET_INDEX + rb"\(\(" + _GET_INDEX + _GET_INDEX + _KEY + _PUT_INDEX + _GET_INDEX + _INT + rb"N?t" + _PUT_INDEX
    + rb"Q" + _INT + _SIZES + _SIZES + rb"[\x88\x89]" + _GET_INDEX + rb"\)R" + _PUT_INDEX + rb"t" + _PUT_INDEX
    + rb"R" + _PUT_INDEX,
    re.DOTALL,
)  # fmt: skip
"""One tensor as torch.save writes all but the first of a kind: thirty opcodes in one step.

It pushes one value, and what it puts into the memo are tuples of a few elements (the persistent id's tuple is
checked by whoever loads it), represented by `_UNSEEN`."""

_UNSEEN = _PLAIN + 64
"""The cost of a memo entry that was written inside `_TENSOR`."""


def check(data: bytes, start: int = 0) -> int:
    """Step over one pickle, and return the index after its last byte.

    Raises:
        BadPickleError: It is cut short, has an unknown or forbidden opcode, an impossible length or memo index, or
            holds tuples that are too nested or too shared to be hashed.
        EOFError: The data end before the pickle does: more of the file may help.
    """
    # MEMOIZE numbers its entries by how many there are, which only a full walk knows.
    if start + 1 < len(data) and data[start] == 0x80 and data[start + 1] <= 3:
        try:
            return _walk(data, start, skip_tensors=True)
        except _NeedsFullWalkError:
            pass
    return _walk(data, start, skip_tensors=False)


class _NeedsFullWalkError(Exception):
    """A pickle of an old protocol has an opcode of a new one."""


def _join(costs: list[int]) -> int:
    """The cost of a tuple of values of these costs."""
    if not costs:
        return _PLAIN
    deepest = max(costs)
    if deepest == _PLAIN:
        return _DEPTH + len(costs) + 1
    depth = deepest // _DEPTH + 1
    elements = sum(cost % _DEPTH for cost in costs) + 1
    if depth > MAX_NESTING:
        raise BadPickleError(f"tuples are nested more than {MAX_NESTING} deep")
    return depth * _DEPTH + min(elements, _DEPTH - 1)


def _hash(spent: int, costs: list[int]) -> int:
    """What has been spent on hashing, with values of these costs as keys."""
    if costs and max(costs) > _PLAIN:
        spent += sum(cost % _DEPTH for cost in costs)
        if spent > MAX_HASH_COST:
            raise BadPickleError(f"its keys expand to more than {MAX_HASH_COST} elements")
    return spent


def _walk(data: bytes, start: int, *, skip_tensors: bool) -> int:
    end = len(data)
    actions = _ACTIONS
    tensor = _TENSOR.match
    stack: list[int] = []
    marks: list[int] = []
    memo: dict[int, int] = {}
    hashed = 0
    at = start
    try:
        while True:
            code = data[at]
            if code == 0x68 and skip_tensors:  # h: the first byte of most tensors
                found = tensor(data, at)
                if found is not None:
                    at = found.end()
                    stack.append(_PLAIN)
                    continue
            action, a, b = actions[code]
            at += 1
            if action == _PUT:
                index = data[at] if a == 1 else int.from_bytes(data[at : at + 4], "little")
                at += a
                if index > end:
                    raise BadPickleError(f"memo index {index} in a pickle of {end - start} bytes")
                memo[index] = stack[-1]
            elif action == _GET:
                index = data[at] if a == 1 else int.from_bytes(data[at : at + 4], "little")
                at += a
                stack.append(memo.get(index, _UNSEEN))
            elif action == _PUSH:
                at += a - 1
                stack.append(_PLAIN)
            elif action == _LENGTH:
                length = int.from_bytes(data[at : at + a], "little")
                at += a + length
                if at > end:
                    raise EOFError
                stack.append(_PLAIN)
            elif action == _MARK:
                marks.append(len(stack))
            elif action == _TUPLE:
                floor = marks.pop()
                parts = stack[floor:]
                if code == 0x91:
                    hashed = _hash(hashed, parts)
                del stack[floor:]
                stack.append(_join(parts))
            elif action == _NTUPLE:
                parts = [stack.pop() for _ in range(a)]
                stack.append(_join(parts))
            elif action == _TO_MARK:
                floor = marks.pop()
                if code in b"ud":
                    hashed = _hash(hashed, stack[floor::2])
                elif code == 0x90:
                    hashed = _hash(hashed, stack[floor:])
                del stack[floor:]
                if a:
                    stack.append(_PLAIN)
            elif action == _POPS:
                if code == 0x73:
                    hashed = _hash(hashed, stack[-2:-1])
                for _ in range(a):
                    stack.pop()
                if b:
                    stack.append(_PLAIN)
            elif action == _TEXT:
                for _ in range(a):
                    line_end = data.find(b"\n", at)
                    if line_end < 0:
                        raise EOFError
                    if code in b"ILF" and line_end - at > _MAX_DIGITS:
                        raise BadPickleError(f"a number of {line_end - at} digits")
                    at = line_end + 1
                stack.append(_PLAIN)
            elif action < 0:
                raise BadPickleError(f"no such opcode: 0x{code:02x} at byte {at - 1 - start}")
            elif code == 0x2E:  # . STOP
                return at
            elif code == 0x80:  # PROTO
                at += 1
            elif code == 0x95:  # FRAME
                at += 8
                if at + int.from_bytes(data[at - 8 : at], "little") > end:
                    raise EOFError
            elif code == 0x94:  # MEMOIZE
                if skip_tensors:
                    raise _NeedsFullWalkError
                memo[len(memo)] = stack[-1]
            elif code == 0x30:  # 0 POP
                if marks and marks[-1] == len(stack):
                    marks.pop()
                else:
                    stack.pop()
            elif code == 0x31:  # 1 POP_MARK
                del stack[marks.pop() :]
            elif code == 0x32:  # 2 DUP
                stack.append(stack[-1])
            elif code in b"gp":
                line_end = data.find(b"\n", at, at + 24)
                if line_end < 0:
                    raise EOFError
                index = int(data[at:line_end])
                at = line_end + 1
                if not 0 <= index <= end:
                    raise BadPickleError(f"memo index {index} in a pickle of {end - start} bytes")
                if code == 0x70:
                    memo[index] = stack[-1]
                else:
                    stack.append(memo.get(index, _UNSEEN))
            elif code == 0x69:  # i INST: two lines, and everything down to the mark
                for _ in range(2):
                    line_end = data.find(b"\n", at)
                    if line_end < 0:
                        raise EOFError
                    at = line_end + 1
                del stack[marks.pop() :]
                stack.append(_PLAIN)
            else:  # EXT1, EXT2, EXT4
                raise BadPickleError("it names an object by a number of the extension registry")
    except IndexError:
        if at >= end:
            raise EOFError from None
        raise BadPickleError(f"an opcode at byte {at - start} wants more than the stack holds") from None
