"""Which tensor of one checkpoint is which tensor of another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from ckpttool.errors import MismatchError
from ckpttool.formats.wrappers import wrapper_prefix
from ckpttool.planning.matching import match, ties
from ckpttool.tensors import DTYPES, Checkpoint, Extent, TensorSpec
from ckpttool.text import first_names

F32 = DTYPES["float32"]


def spec(shape: tuple[int, ...] = (2,), *, at: int = 0, dtype: str = "float32", file: str = "x") -> TensorSpec:
    return TensorSpec(DTYPES[dtype], shape, Extent(Path(file), at, 4096))


def checkpoint(name: str, tensors: Mapping[str, TensorSpec], **copies: Mapping[str, TensorSpec]) -> Checkpoint:
    return Checkpoint(Path(name), "torch", dict(tensors), copies=dict(copies))


def distinct(*names: str, shape: tuple[int, ...] = (2,)) -> dict[str, TensorSpec]:
    return {name: spec(shape, at=64 * index) for index, name in enumerate(names)}


@pytest.mark.parametrize(
    ("names", "prefix"),
    [
        (["a", "b"], ""),
        (["module.a", "module.b"], "module."),
        (["module.a", "b"], ""),
        (["module._orig_mod.a"], "module._orig_mod."),
        (["_orig_mod.module.a", "_orig_mod.module.b"], "_orig_mod.module."),
        (["modules.a"], ""),
        ([], ""),
    ],
)
def test_a_wrapper_prefix_is_one_that_all_names_have(names: list[str], prefix: str) -> None:
    assert prefix == wrapper_prefix(names)


def test_names_are_matched_across_wrappers_and_called_as_in_the_newest() -> None:
    old = checkpoint("old.pt", distinct("module.a", "module.b"))
    new = checkpoint("new.pt", distinct("a", "b"))
    matched = match([old, new], 1, "strict")
    assert matched.names == (("", "a"), ("", "b"))
    assert old.weights["module.b"] == matched.found[0]["", "b"]
    assert list(matched.notes) == ["names with the wrapper prefix 'module.' in old.pt are matched with the newest's"]
    other_way = match([new, old], 1, "strict")
    assert other_way.names == (("", "module.a"), ("", "module.b"))
    assert new.weights["a"] == other_way.found[0]["", "module.a"]


def test_a_missing_and_an_extra_name_are_counted_and_named() -> None:
    old = checkpoint("old.pt", distinct("a", "c", "d"))
    new = checkpoint("new.pt", distinct("a", "b"))
    with pytest.raises(
        MismatchError, match=r"old.pt: of the tensors of new.pt it lacks 1 \(b\) and has 2 more \(c, d\)"
    ) as e:
        match([old, new], 1, "strict")
    assert "keys='intersection'" in str(e.value.hint)


def test_the_policies_keep_what_they_say() -> None:
    old = checkpoint("old.pt", distinct("a", "c"))
    new = checkpoint("new.pt", distinct("a", "b"))
    assert match([old, new], 1, "intersection").names == (("", "a"),)
    newest = match([old, new], 1, "newest")
    assert newest.names == (("", "a"), ("", "b"))
    assert frozenset({("", "b")}) == newest.alone
    assert newest.notes


@pytest.mark.parametrize("policy", ["strict", "intersection", "newest"])
def test_checkpoints_of_different_models_are_refused_by_every_policy(policy: str) -> None:
    one, other = checkpoint("a.pt", distinct("a")), checkpoint("b.pt", distinct("b"))
    with pytest.raises(MismatchError):
        match([one, other], 1, policy)  # type: ignore[arg-type]


def test_shapes_are_never_broadcast() -> None:
    old = checkpoint("old.pt", {"a": spec((1,)), "b": spec((1,), at=8)})
    new = checkpoint("new.pt", {"a": spec((2,)), "b": spec((2,), at=8)})
    with pytest.raises(MismatchError, match=r"a has shape \[1\] in old.pt and \[2\] in new.pt; 1 more differ \(b\)"):
        match([old, new], 1, "newest")


def test_integers_are_not_matched_with_floats_but_floats_of_two_widths_are() -> None:
    new = checkpoint("new.pt", {"a": spec()})
    with pytest.raises(MismatchError, match=r"int64 in old\.pt and float32 in new\.pt"):
        match([checkpoint("old.pt", {"a": spec(dtype="int64")}), new], 1, "strict")
    assert match([checkpoint("old.pt", {"a": spec(dtype="bfloat16")}), new], 1, "strict").names


def test_a_tied_name_may_be_stored_once() -> None:
    """A member whose format cannot tie (safetensors) holds one of the names; the other is the same tensor."""
    tied = spec()
    new = checkpoint("new.pt", {"embed": tied, "head": tied, "b": spec(at=64)})
    for kept in ("embed", "head"):
        old = checkpoint("old.safetensors", {kept: spec(file="y"), "b": spec(at=64, file="y")})
        matched = match([old, new], 1, "strict")
        assert matched.found[0]["", "embed"] == matched.found[0]["", "head"] == old.weights[kept]
        back = match([new, old], 1, "strict")
        assert (("", kept), ("", "b")) == back.names


def test_ties_map_to_the_first_name_and_ignore_tensors_without_elements() -> None:
    same, empty = spec(), spec((0,), at=64)
    tensors = {("", "a"): same, ("", "b"): spec(at=8), ("", "c"): same, ("", "d"): empty, ("", "e"): empty}
    assert ties(tensors) == {("", "c"): ("", "a")}


def test_copies_are_matched_with_their_own_kind() -> None:
    one = checkpoint("one.pt", distinct("a"), ema={"a": spec(at=512)})
    two = checkpoint("two.pt", distinct("a"), ema={"a": spec(at=512)})
    bare = checkpoint("bare.pt", distinct("a"))
    assert match([one, two], 1, "strict").names == (("", "a"), ("ema", "a"))
    assert match([bare, two], 1, "strict", with_copies=False).names == (("", "a"),)
    with pytest.raises(MismatchError, match=r"lacks 1 \(a \(ema\)\)"):
        match([bare, two], 1, "strict")


def test_long_lists_of_names_are_cut() -> None:
    assert first_names("abcdefg") == "a, b, c, d, e and 2 more"


@pytest.mark.parametrize(
    ("formats", "files", "said"),
    [
        (("parts", "parts"), (2, 1), "new is in 1 file and old in 2: it may be unfinished, and exclude='new'"),
        (("parts", "parts"), (2, 3), "old is in 2 files and new in 3: it may be unfinished, and exclude='old'"),
        # A rank's file alone is a checkpoint of another format.
        (("parts", "torch"), (2, 1), "new is in 1 file and old in 2"),
        (("distributed", "huggingface"), (3, 2), "old is of the format distributed and new of huggingface"),
        (("torch", "torch"), (1, 1), None),
    ],
)
def test_what_does_not_fit_may_be_unfinished(
    formats: tuple[str, str], files: tuple[int, int], said: str | None
) -> None:
    """Where each rank saves a file of its own, nothing else may show that the last ones are missing."""
    shapes = distinct("a", "b"), distinct("a"), distinct("a", "b", shape=(1,))
    for one, other in ((shapes[0], shapes[1]), (shapes[0], shapes[2])):
        old, new = (
            Checkpoint(Path(name), form, tensors, files=(Path("f"),) * count)
            for name, form, tensors, count in zip(("old", "new"), formats, (one, other), files, strict=True)
        )
        with pytest.raises(MismatchError) as caught:
            match([old, new], 1, "strict")
        hint = caught.value.hint or ""
        assert said in hint if said else "unfinished" not in hint
