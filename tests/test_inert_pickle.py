"""Pickles are read without being run, and written back as they were."""

from __future__ import annotations

import argparse
import codecs
import collections
import contextlib
import decimal
import enum
import functools
import io
import os
import pickle
import pickletools
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from counting import count_calls
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpttool.errors import CkpttoolError, UnreadableError, UnsupportedError
from ckpttool.formats.pickles.bounds import BadPickleError, check
from ckpttool.formats.pickles.emitter import DROPPED, dump
from ckpttool.formats.pickles.inert import Inert, InertType, load

WEIGHTS_ONLY_OPCODES = """
GLOBAL NEWOBJ REDUCE BUILD APPEND APPENDS SETITEM SETITEMS MARK TUPLE TUPLE1 TUPLE2 TUPLE3 NONE NEWFALSE NEWTRUE
EMPTY_TUPLE EMPTY_LIST EMPTY_DICT EMPTY_SET BININT BININT1 BININT2 BINFLOAT BINUNICODE SHORT_BINSTRING BINPERSID
BINGET LONG_BINGET BINPUT LONG_BINPUT LONG1 PROTO STOP
"""
"""What the unpickler of torch.load(weights_only=True) knows (torch/_weights_only_unpickler.py, 2.13)."""


class Colour(enum.Enum):
    RED = 1


class Outer:
    class Inner:
        def __init__(self) -> None:
            self.x = 3

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Outer.Inner) and vars(self) == vars(other)

        __hash__ = None


class Keywords:
    def __new__(cls, *, size: int) -> Keywords:  # noqa: PYI034
        made = super().__new__(cls)
        made.size = size
        return made

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, int]]:
        return (), {"size": self.size}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Keywords) and other.size == self.size

    __hash__ = None


class Settings(dict):
    pass


class Slots:
    __slots__ = ("a", "b")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slots) and (self.a, self.b) == (other.a, other.b)

    __hash__ = None


class Scripted(list):
    pass


def read(data: bytes) -> Any:
    return load(data, path="x.pt")[0]


def again(value: Any, protocol: int) -> Any:
    """What Python makes of a pickle that was read and written here."""
    emitted = dump(read(pickle.dumps(value, protocol)))
    pickletools.dis(emitted, out=io.StringIO())  # checks the stack at every opcode
    return pickle.loads(emitted)


def with_attribute(value: Any, **attributes: Any) -> Any:
    for name, attribute in attributes.items():
        setattr(value, name, attribute)
    return value


VALUES = {
    "none": None,
    "bytes": b"\x00\xff",
    "empty bytes": b"",
    "bytearray": bytearray(b"xyz"),
    "empty bytearray": bytearray(),
    "large integers": [1 << 3000, -(1 << 40), 255, 256, 65535, 65536, -1, 2**31, -(2**31), 1 << 2047],
    "floats": [0.0, -0.0, 1e300, float("inf")],
    "complex": 1 + 2j,
    "surrogates": "\ud800 \U0001f600",
    "long text": "x" * 70_000,
    "set": {"a", "b", 3},
    "frozenset": frozenset({1, (2, 3), frozenset({4})}),
    "ordered dict": collections.OrderedDict(b=1, a=2),
    "default dict": collections.defaultdict(list, {1: [2]}),
    "counter": collections.Counter("hello"),
    "deque": collections.deque([1, 2], 5),
    "namespace": argparse.Namespace(lr=0.1, betas=(0.9, 0.99), nested=argparse.Namespace(x=1)),
    "enum": Colour.RED,
    "enum keys": {Colour.RED: 1, (1, 2): 3, None: 4},
    "nested class": Outer.Inner(),
    "keyword new": Keywords(size=3),
    "slots": with_attribute(Slots(), a=1, b=[2]),
    "dict subclass": with_attribute(Settings(a=1), note="kept"),
    "list subclass": with_attribute(Scripted([1, 2, 3]), note="kept"),
    "decimal": decimal.Decimal("1.5"),
    "range and slice": [range(3), slice(1, None)],
    "path": Path("a/b"),
    "function": os.path.join,
    "type": dict,
    "numpy scalar": np.float64(3.5),
    "many items": [list(range(3001)), {i: str(i) for i in range(2500)}, [1], {1: 1}, [], {}, ()],
    "long tuple": tuple(range(300)),
    "tuples": [(1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", VALUES)
def test_what_is_read_is_written_back_unchanged(name: str, protocol: int) -> None:
    value = VALUES[name]
    if name == "slots" and protocol < 2:
        pytest.skip("Python cannot pickle them")
    back = again(value, protocol)
    assert back == value
    assert type(back) is type(value)
    assert getattr(back, "note", None) == getattr(value, "note", None)


@pytest.mark.parametrize("protocol", range(6))
def test_numpy_arrays_and_partials_come_back(protocol: int) -> None:
    array = np.arange(6, dtype="<f4").reshape(2, 3).T
    partial = functools.partial(int, base=2)
    back = again({"array": array, "partial": partial, "objects": np.array([1, "a"], object)}, protocol)
    np.testing.assert_array_equal(back["array"], array)
    assert back["partial"]("11") == 3
    assert list(back["objects"]) == [1, "a"]


@pytest.mark.parametrize("protocol", range(6))
def test_sharing_and_cycles_survive(protocol: int) -> None:
    endless: list[Any] = [1]
    endless.append(endless)
    pair = (1, [2])
    pair[1].append(pair)
    owner = argparse.Namespace()
    owner.me, owner.all = owner, [owner]
    mapping: dict[str, Any] = {"shared": endless}
    mapping["self"] = mapping
    back = again([endless, pair, owner, mapping, endless], protocol)
    assert back[0][1] is back[0]
    assert back[4] is back[0]
    assert back[1][1][1] is back[1]
    assert back[2].me is back[2]
    assert back[2].all[0] is back[2]
    assert back[3]["self"] is back[3]
    assert back[3]["shared"] is back[0]


class Holder:
    """Pickled with itself among the arguments of its own making."""

    def __init__(self, things: list[Any]) -> None:
        self.things = things

    def __reduce__(self) -> Any:
        return Holder, (self.things,), {"things": self.things, "more": 1}


def test_an_object_inside_its_own_arguments_is_written_once() -> None:
    things: list[Any] = []
    things.append(Holder(things))
    data = pickle.dumps(things, 2)
    assert dump(read(dump(read(data)))) == dump(read(data))
    back = pickle.loads(dump(read(data)))
    assert back[0].things is back
    assert len(back) == 1


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text() | st.integers() | st.tuples(st.integers(), st.text()), inner)
        | st.tuples(inner)
        | st.tuples(inner, inner, inner, inner)
        | st.sets(st.integers() | st.text() | st.frozensets(st.integers()))
        | inner.map(lambda value: argparse.Namespace(value=value))
        | st.dictionaries(st.text(), inner).map(collections.OrderedDict)
    ),
    max_leaves=20,
)


@given(plain, st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_any_plain_value_comes_back_equal(value: Any, protocol: int) -> None:
    assert again(value, protocol) == value


@given(plain)
@settings(max_examples=50, deadline=None)
def test_writing_twice_gives_the_same_bytes(value: Any) -> None:
    once = dump(read(pickle.dumps(value, 2)))
    assert dump(read(once)) == once


def test_nothing_but_the_opcodes_of_weights_only_is_written() -> None:
    value = {"a": [1, 2.5, "x", None, True, (1, 2)], "o": collections.OrderedDict(a=1 << 70), "t": tuple(range(9))}
    emitted = dump(read(pickle.dumps(value, 2)))
    assert {opcode.name for opcode, _, _ in pickletools.genops(emitted)} <= set(WEIGHTS_ONLY_OPCODES.split())


def test_the_order_of_a_set_does_not_depend_on_the_process() -> None:
    one = dump(read(pickle.dumps({f"name{i}" for i in range(50)}, 4)))
    other = dump(read(pickle.dumps({f"name{i}" for i in reversed(range(50))}, 4)))
    assert one == other
    assert [arg for op, arg, _ in pickletools.genops(one) if op.name == "BINUNICODE"] == sorted(
        f"name{i}" for i in range(50)
    )


def test_edits_replace_and_drop_entries_of_one_container() -> None:
    graph = read(pickle.dumps({"a": 1, "b": [1, 2, 3], "c": (1, 2), "d": collections.OrderedDict(x=1, y=2)}, 2))
    edits = {
        id(graph): {"a": DROPPED},
        id(graph["b"]): {0: DROPPED, 2: "three"},
        id(graph["c"]): {1: "two"},
        id(graph["d"]): {"x": DROPPED, "y": None},
    }
    assert pickle.loads(dump(graph, edits=edits)) == {
        "b": [2, "three"],
        "c": (1, "two"),
        "d": collections.OrderedDict(y=None),
    }
    assert pickle.loads(dump(graph))["a"] == 1


def test_a_substitute_is_in_every_place_of_an_object() -> None:
    shared = argparse.Namespace(x=1)
    graph = read(pickle.dumps([shared, shared, argparse.Namespace(x=2)], 2))
    instead = InertType("Inert", (Inert,), {"__slots__": (), "module": "argparse", "name": "Namespace"})()
    first = graph[0]
    back = pickle.loads(dump(graph, substitute=lambda node: instead if node is first else node))
    assert back[0] is back[1]
    assert not vars(back[0])
    assert back[2].x == 2


def test_inert_objects_say_what_they_are() -> None:
    node = read(pickle.dumps(argparse.Namespace(x=1), 2))
    assert isinstance(node, Inert)
    assert node.qualified == "argparse.Namespace"
    assert "argparse.Namespace" in repr(node)
    assert node.states == ({"x": 1},)
    assert read(pickle.dumps(os.path.join, 2)).qualified.endswith("path.join")


def test_a_name_that_protocol_two_cannot_say_is_refused() -> None:
    with pytest.raises(UnsupportedError):
        dump(read(b"\x80\x04\x8c\x04mod\n\x8c\x01x\x93."))
    with pytest.raises(UnsupportedError):
        dump(object())


# --- Malicious pickles ----------------------------------------------------------------------------------------------


def call(module: str, name: str, argument: str) -> bytes:
    text = argument.encode()
    return f"c{module}\n{name}\n(X".encode() + struct.pack("<I", len(text)) + text + b"tR"


def bomb(levels: int) -> bytes:
    """A tuple that holds itself twice, so many levels deep, as a key."""
    doubled = b"".join(
        b"h" + bytes((i,)) + b"h" + bytes((i,)) + b"\x86q" + bytes((i + 1,)) + b"0" for i in range(levels)
    )
    return b"\x80\x02}N\x85q\x000" + doubled + b"h" + bytes((levels,)) + b"K\x01s."


def deep_key(levels: int) -> bytes:
    return b"\x80\x02}N" + b"\x85" * levels + b"K\x01s."


MALICIOUS = {
    "memo index of four bytes": b"\x80\x02]r\xff\xff\xff\xff.",
    "memo index in text": b"]p4294967295\n.",
    "negative memo index": b"]p-1\n.",
    "text length beyond the end": b"\x80\x02X\xff\xff\xff\xffabc.",
    "bytes of 2^60": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"abc.",
    "bytearray of 2^60": b"\x80\x05\x96" + struct.pack("<Q", 1 << 60) + b"abc.",
    "frame of 2^60": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"N.",
    "negative long": b"\x80\x02\x8b\xff\xff\xff\xff.",
    "extension code": b"\x80\x02\x82\x01.",
    "extension code of four bytes": b"\x80\x02\x84\x01\x00\x00\x00.",
    "unknown opcode": b"\x80\x02\xff.",
    "no stop": b"\x80\x02N",
    "empty": b"",
    "stack underflow": b"\x80\x02R.",
    "tuple of nothing": b"\x80\x02t.",
    "unknown memo": b"\x80\x02h\x05.",
    "call of a list": b"\x80\x02])R.",
    "build of a list": b"\x80\x02]}b.",
    "build of a class": b"\x80\x02cos\nsystem\n}b.",
    "items of a class": b"\x80\x02cos\nsystem\nK\x01K\x02s.",
    "unhashable key": b"\x80\x02}]K\x01s.",
    "future protocol": b"\x80\x63N.",
    "digits": b"I" + b"9" * 100_000 + b"\n.",
    "long digits": b"L" + b"9" * 100_000 + b"L\n.",
    "no digits": b"Iabc\n.",
    "bad utf-8": b"\x80\x02X\x02\x00\x00\x00\xff\xfe.",
    "null in a name": b"\x80\x02c\x00\n\x00\n)R}b0N",
    "shared tuples as a key": bomb(60),
    "nested tuples as a key": deep_key(1_000_000),
    "persistent id": b"\x80\x02N\x85Q.",
    "out of band": b"\x80\x05\x97.",
}


@pytest.mark.parametrize("name", MALICIOUS)
def test_hostile_pickles_end_in_one_error_after_a_few_calls(name: str) -> None:
    def read_it() -> None:
        with pytest.raises((UnreadableError, EOFError)):
            load(MALICIOUS[name], path="x.pt")

    assert count_calls(read_it) < 5_000


@pytest.mark.parametrize(
    "name",
    [
        "memo index of four bytes",
        "memo index in text",
        "text length beyond the end",
        "bytearray of 2^60",
        "frame of 2^60",
        "extension code",
        "digits",
        "shared tuples as a key",
        "nested tuples as a key",
    ],
)
def test_what_would_hurt_the_unpickler_never_reaches_it(name: str) -> None:
    """An allocation of gigabytes succeeds on some machines, and hashing cannot be interrupted."""
    with pytest.raises((BadPickleError, EOFError)):
        check(MALICIOUS[name])


def test_small_shared_tuples_are_keys_like_any_other() -> None:
    assert len(read(bomb(12))) == 1


@pytest.mark.parametrize(
    "payload",
    [
        lambda target: call("os", "system", f"touch {target}"),
        lambda target: call("posix", "system", f"touch {target}"),
        lambda target: call("builtins", "eval", f"open({str(target)!r}, 'w')"),
        lambda target: call("__builtin__", "exec", f"open({str(target)!r}, 'w')"),
        lambda target: b"(S" + repr(f"touch {target}").encode() + b"\nios\nsystem\n",
        lambda target: (
            b"(cos\nsystem\nX" + struct.pack("<I", len(f"touch {target}")) + f"touch {target}".encode() + b"o"
        ),
        lambda target: (
            b"\x8c\x02os\x8c\x06system\x93X"
            + struct.pack("<I", len(f"touch {target}"))
            + f"touch {target}".encode()
            + b"\x85R"
        ),
        lambda target: call("pathlib", "Path", str(target)) + b"}b",
        lambda target: (
            b"c__builtin__\ngetattr\n(cos\npath\nX\x06\x00\x00\x00systemtR(X"
            + struct.pack("<I", len(f"touch {target}"))
            + f"touch {target}".encode()
            + b"tR"
        ),
    ],
)
def test_what_a_pickle_names_is_never_called(tmp_path: Path, payload: Any) -> None:
    target = tmp_path / "was-called"
    for protocol in (b"\x80\x02", b"\x80\x04", b""):
        try:
            graph = read(protocol + payload(target) + b".")
            dump(graph)
        except UnreadableError:
            pass
        assert not target.exists()


def test_what_a_pickle_names_is_never_imported() -> None:
    assert "antigravity" not in sys.modules
    read(b"\x80\x02cantigravity\nfly\n)R.")
    assert "antigravity" not in sys.modules


def test_deep_containers_are_read_and_written() -> None:
    """Recursion would end at a thousand."""
    depth = 100_000
    data = b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."
    graph = read(dump(read(data)))
    levels = 1
    while graph:
        (graph,) = graph
        levels += 1
    assert levels == depth
    objects = b"\x80\x02" + b"cm\nC\nq\x00)R" + b"h\x00)Rb" + b"."
    assert read(objects).states


def test_a_billion_laughs_cost_nothing() -> None:
    """Sharing is kept, so that ten lists of ten lists of ten lists are thirty lists."""
    layers = b"\x80\x02]q\x00" + b"".join(
        b"]q" + bytes((i + 1,)) + b"(" + (b"h" + bytes((i,))) * 10 + b"e" for i in range(100)
    )
    assert len(dump(read(layers + b"."))) < 10_000


def test_a_key_may_be_a_tuple_of_tuples() -> None:
    value = {((1, 2), (3, (4, ("x",)))): 1, **{(i, i): i for i in range(1000)}}
    assert again(value, 2) == value


def test_byte_strings_of_python_two_are_read() -> None:
    assert read(b"\x80\x02U\x03abc.") == "abc"
    binary = read(b"\x80\x02(U\x03abcU\x02\xff\xfet.")
    assert binary == ("abc", "\xff\xfe")
    assert pickle.loads(dump(binary)) == binary


@pytest.mark.parametrize("protocol", range(6))
def test_the_end_of_a_pickle_is_found(protocol: int) -> None:
    data = pickle.dumps(VALUES["namespace"], protocol)
    assert check(data + b"more") == len(data)
    assert check(b"xx" + data, 2) == len(data) + 2
    for cut in range(len(data)):
        with pytest.raises((EOFError, BadPickleError)):
            check(data[:cut])


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_damage_never_escapes_as_another_error(data: st.DataObject) -> None:
    good = pickle.dumps([VALUES["namespace"], {"a": (1, 2.5, "x")}, np.float64(2)], data.draw(st.integers(0, 5)))
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(CkpttoolError, EOFError):
        dump(read(bytes(bad)))


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_noise_never_escapes_as_another_error(noise: bytes) -> None:
    with contextlib.suppress(CkpttoolError, EOFError):
        dump(read(b"\x80\x02" + noise + b"."))


def test_the_error_names_the_file_and_says_that_nothing_ran() -> None:
    with pytest.raises(UnreadableError) as caught:
        load(b"\x80\x02\xff.", path="runs/a/broken.pt")
    assert "runs/a/broken.pt" in caught.value.message
    assert caught.value.hint is not None
    assert "executed" in caught.value.hint


def test_encoded_bytes_are_what_protocol_two_says_for_bytes() -> None:
    emitted = dump(read(pickle.dumps(b"\xff", 3)))
    assert b"c_codecs\nencode" in emitted
    assert pickle.loads(emitted) == codecs.encode("\xff", "latin1")
