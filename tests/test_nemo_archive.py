"""NeMo's .nemo archives, as its SaveRestoreConnector packs and unpacks them; tarfile and torch are the judges."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import Ran
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from ckpttool.engine import execute
from ckpttool.errors import UnreadableError, UnsupportedError, UsageError
from ckpttool.formats import open_checkpoint
from ckpttool.formats.pytorch import nemo as nemo_archive
from ckpttool.planning.planner import make_plan
from ckpttool.planning.request import Policy
from ckpttool.selection.discovery import discover, from_paths

Run = Callable[..., Ran]
CONFIG = "target: asr.EncDecCTCModelBPE\ntokenizer:\n  model_path: nemo:0123_tokenizer.model\n"


def state(step: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(step)
    tied = torch.randn(40, 30)
    return {
        "encoder.weight": tied,
        "decoder.weight": tied,
        "norm.running_mean": torch.randn(7),
        "norm.num_batches_tracked": torch.tensor(step),
    }


def folder(path: Path, step: int) -> Path:
    path.mkdir(parents=True)
    torch.save(state(step), path / "model_weights.ckpt")
    (path / "model_config.yaml").write_text(f"{CONFIG}step: {step}\n")
    (path / "0123_tokenizer.model").write_bytes(os.urandom(700))
    (path / "9_empty").write_bytes(b"")
    (path / "deeper").mkdir()
    (path / "deeper" / ("long" * 40)).write_text("a name of more than 100 bytes")
    return path


def nemo(path: Path, step: int, *, form: int = tarfile.PAX_FORMAT, mode: str = "w:") -> Path:
    """As NeMo makes it."""
    source = folder(path.parent / f"{path.name}.d", step)
    with tarfile.open(path, mode, format=form) as tar:
        tar.add(source, arcname=".")
    return path


def contents(path: Path) -> list[tuple[object, ...]]:
    """All that an archive says of each member but the weights' size, with its bytes."""
    with tarfile.open(path, "r:") as tar:
        return [
            (
                *(member.name, member.type, member.mode, member.uid, member.gid, member.mtime, member.uname),
                None if member.name.endswith(".ckpt") else tar.extractfile(member).read() if member.isreg() else b"",
            )
            for member in tar.getmembers()
        ]


def weights(path: Path) -> dict[str, torch.Tensor]:
    """As NeMo reads them: unpacked, and loaded by torch."""
    with tarfile.open(path, "r:") as tar:
        data = tar.extractfile("./model_weights.ckpt").read()
    return torch.load(io.BytesIO(data), weights_only=True)


def mean(*steps: int) -> dict[str, torch.Tensor]:
    states = [state(step) for step in steps]
    made = {name: sum(each[name].double() for each in states) / len(states) for name in states[0]}
    made["norm.num_batches_tracked"] = states[-1]["norm.num_batches_tracked"]
    return {name: value.to(states[-1][name].dtype) for name, value in made.items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


# --- What comes out --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_the_output_is_the_newest_archive_with_the_mean_in_it(tmp_path: Path, run: Run, form: int) -> None:
    inputs = [nemo(tmp_path / f"{name}.nemo", step, form=form) for name, step in (("a", 1), ("b", 2))]
    output = tmp_path / "avg.nemo"
    assert run("average", *inputs, "-o", output).exit_code == 0
    assert equal(weights(output), mean(1, 2))
    tied = weights(output)
    assert tied["encoder.weight"].data_ptr() == tied["decoder.weight"].data_ptr()
    assert contents(output) == contents(inputs[1])
    assert output.stat().st_size % tarfile.RECORDSIZE == 0
    again = open_checkpoint(output)
    assert (again.format, [each["name"] for each in again.provenance["members"]]) == ("nemo", ["a.nemo", "b.nemo"])
    average = tmp_path / "again.nemo"
    assert run("average", *inputs, "-o", average).exit_code == 0
    assert average.read_bytes() == output.read_bytes()


def test_other_dtypes_make_another_size(tmp_path: Path, run: Run) -> None:
    inputs = [nemo(tmp_path / f"{name}.nemo", step) for name, step in (("a", 1), ("b", 2))]
    output = tmp_path / "avg.nemo"
    assert run("average", *inputs, "-o", output, "--dtype", "float16").exit_code == 0
    assert {name: value.dtype for name, value in weights(output).items()} == {
        **dict.fromkeys(["encoder.weight", "decoder.weight", "norm.running_mean"], torch.float16),
        "norm.num_batches_tracked": torch.int64,
    }
    assert contents(output) == contents(inputs[1])


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "ckpt"])
def test_an_archive_becomes_a_plain_file_of_its_weights(tmp_path: Path, run: Run, suffix: str) -> None:
    inputs = [nemo(tmp_path / f"{name}.nemo", step) for name, step in (("a", 1), ("b", 2))]
    output = tmp_path / f"avg.{suffix}"
    assert run("average", *inputs, "-o", output).exit_code == 0
    loaded = load_file(output) if suffix == "safetensors" else torch.load(output, weights_only=True)
    expected = mean(1, 2)
    assert loaded.keys() | {"decoder.weight", "encoder.weight"} == expected.keys()  # safetensors keeps one of two tied
    assert all(torch.equal(loaded[name], expected[name]) for name in loaded)


def test_members_of_other_formats_are_averaged_with_an_archive(tmp_path: Path) -> None:
    old = tmp_path / "a.ckpt"
    torch.save(state(1), old)
    new = nemo(tmp_path / "b.nemo", 2)
    execute(make_plan(from_paths([old, new]), tmp_path / "avg.nemo"))
    assert equal(weights(tmp_path / "avg.nemo"), mean(1, 2))
    with pytest.raises(UnsupportedError, match="only written where the newest member is one"):
        make_plan(from_paths([new, old]), tmp_path / "x.nemo")


def test_without_an_output_the_newest_ones_name_and_kind_are_kept(tmp_path: Path, run: Run) -> None:
    for step in (9, 10):
        nemo(tmp_path / "run" / f"asr-{step}.nemo", step)
    found = discover(tmp_path / "run")
    assert [entry.step for entry in found.entries] == [9, 10]
    assert run("average", tmp_path / "run", "--last", "2").exit_code == 0
    (output,) = (tmp_path / "run" / "avg-last-2").iterdir()
    assert equal(weights(output), mean(9, 10))
    assert output.name == "asr-10.nemo"


def test_an_archive_is_known_by_what_is_in_it(tmp_path: Path) -> None:
    path = nemo(tmp_path / "model.nemo", 1)
    assert open_checkpoint(path.rename(tmp_path / "model.tar")).format == "nemo"
    with tarfile.open(tmp_path / "other.tar", "w:") as tar:
        tar.add(__file__, arcname="x.py")
    with pytest.raises(UnsupportedError, match="not a checkpoint of a known format"):
        open_checkpoint(tmp_path / "other.tar")


def test_one_flipped_bit_in_the_configuration_changes_nothing_else(tmp_path: Path) -> None:
    """It is copied, not understood."""
    path = nemo(tmp_path / "a.nemo", 1)
    with tarfile.open(path, "r:") as tar:
        at = tar.getmember("./model_config.yaml").offset_data
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)
    execute(make_plan(from_paths([path]), tmp_path / "b.nemo"))
    assert contents(tmp_path / "b.nemo") == contents(path)


# --- Headers ---------------------------------------------------------------------------------------------------


@given(
    st.integers(0, 2**40),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT]),
    st.integers(0, 8**7 - 1),
)
def test_a_new_size_is_what_tarfile_reads_in_the_header(nbytes: int, form: int, number: int) -> None:
    info = tarfile.TarInfo("./model_weights.ckpt")
    info.size, info.mtime, info.uid, info.uname = 7, number, number, "someone"
    made = nemo_archive._header(info.tobuf(form), nbytes)
    again = tarfile.TarInfo.frombuf(made, "utf-8", "surrogateescape")
    assert (again.size, again.mtime, again.uid, again.uname, again.name) == (
        *(nbytes, number, number, "someone"),
        "./model_weights.ckpt",
    )
    assert nbytes >= 8**11 or form == tarfile.PAX_FORMAT or made == resized(info, nbytes).tobuf(form)


def resized(info: tarfile.TarInfo, nbytes: int) -> tarfile.TarInfo:
    info.size = nbytes
    return info


def rewritten(path: Path, change: Callable[[tarfile.TarInfo], object], *, form: int = tarfile.PAX_FORMAT) -> Path:
    """The same archive, with something else said of the weights."""
    with tarfile.open(path, "r:") as tar:
        members = [(member, tar.extractfile(member).read() if member.isreg() else b"") for member in tar.getmembers()]
    with path.open("wb") as file:
        for member, data in members:
            size = member.size
            if member.name == "./model_weights.ckpt":
                change(member)
            file.write(member.tobuf(form))
            file.write(data + bytes(-size % 512))
        file.write(bytes(2048))
    return path


@pytest.mark.parametrize("how", ["pax", "gnu"])
def test_sizes_in_the_notation_for_large_files_are_read_and_written(tmp_path: Path, how: str) -> None:
    path = nemo(tmp_path / "a.nemo", 1)
    if how == "pax":
        rewritten(path, lambda member: member.pax_headers.update(size=str(member.size)))
        assert b" size=" in path.read_bytes()
    else:
        with tarfile.open(path, "r:") as tar:
            member = tar.getmember("./model_weights.ckpt")
        data = bytearray(path.read_bytes())
        at = member.offset_data - 512
        data[at + 124 : at + 136] = b"\x80" + member.size.to_bytes(11, "big")
        data[at + 148 : at + 156] = b" " * 8
        data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
        path.write_bytes(data)
    assert equal(weights(path), state(1))
    execute(make_plan(from_paths([path]), tmp_path / "b.nemo", policy=Policy(dtype="float64")))
    assert weights(tmp_path / "b.nemo")["encoder.weight"].dtype == torch.float64
    assert [entry[0] for entry in contents(tmp_path / "b.nemo")] == [entry[0] for entry in contents(path)]


def test_a_size_beyond_the_file_is_refused(tmp_path: Path) -> None:
    for number, size in enumerate((1 << 34, 1 << 60)):
        path = nemo(tmp_path / f"{number}.nemo", 1)
        rewritten(path, lambda member, size=size: resized(member, size), form=tarfile.GNU_FORMAT)
        with pytest.raises(UnreadableError, match="damaged"):
            open_checkpoint(path)


def test_an_archive_of_very_many_members_is_none_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = nemo(tmp_path / "a.nemo", 1)
    there = len(contents(path))
    monkeypatch.setattr(nemo_archive, "_MAX_MEMBERS", there)
    open_checkpoint(path)
    monkeypatch.setattr(nemo_archive, "_MAX_MEMBERS", there - 1)
    with pytest.raises(UnsupportedError, match=r"more than .* files and directories"):
        open_checkpoint(path)


# --- What is refused -------------------------------------------------------------------------------------------


def test_a_compressed_archive_says_what_to_type(tmp_path: Path) -> None:
    path = nemo(tmp_path / "old.nemo", 1, mode="w:gz")
    with pytest.raises(UnsupportedError, match=r"a compressed \.nemo archive") as caught:
        open_checkpoint(path)
    assert caught.value.hint.startswith("Unpack its compression: gzip -dc old.nemo > old-plain.nemo.")
    (tmp_path / "old-plain.nemo").write_bytes(gzip.decompress(path.read_bytes()))
    execute(make_plan(from_paths([tmp_path / "old-plain.nemo"]), tmp_path / "avg.nemo"))
    assert equal(weights(tmp_path / "avg.nemo"), state(1))


@pytest.mark.parametrize(
    ("names", "says", "hint"),
    [
        (["model_weights/.metadata", "model_weights/__0_0.distcp"], "sharded", "m/model_weights"),
        (["mp_rank_00/model_weights.ckpt", "mp_rank_01/model_weights.ckpt"], "several ranks", "tar -xf m.nemo -C m"),
        (["vocab.txt"], "no model_weights.ckpt", "model_config.yaml, vocab.txt"),
    ],
)
def test_other_weights_say_what_to_do(tmp_path: Path, names: list[str], says: str, hint: str) -> None:
    with tarfile.open(tmp_path / "m.nemo", "w:") as tar:
        for name in ("model_config.yaml", *names):
            tar.addfile(tarfile.TarInfo(f"./{name}"), io.BytesIO())
    with pytest.raises(UnsupportedError, match=says) as caught:
        open_checkpoint(tmp_path / "m.nemo")
    assert hint in caught.value.hint


def test_weights_of_an_old_torch_say_how_to_unpack(tmp_path: Path) -> None:
    source = folder(tmp_path / "d", 1)
    torch.save(state(1), source / "model_weights.ckpt", _use_new_zipfile_serialization=False)
    with tarfile.open(tmp_path / "m.nemo", "w:") as tar:
        tar.add(source, arcname=".")
    with pytest.raises(UnsupportedError, match="zip format") as caught:
        open_checkpoint(tmp_path / "m.nemo")
    assert "tar -xf m.nemo" in caught.value.hint


def extra(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "member",
    [
        extra("../x"),
        extra("./a/../../x"),
        extra("/etc/x"),
        extra("C:/x"),
        extra("..\\x"),
        extra("./x", tarfile.SYMTYPE, "/etc/passwd"),
        extra("./x", tarfile.SYMTYPE, "../../x"),
        extra("./x", tarfile.LNKTYPE, "../x"),
        extra("./x", tarfile.FIFOTYPE),
        extra("./x", tarfile.CHRTYPE),
        extra("./model_weights.ckpt"),
        extra("model_weights.ckpt"),
        extra("././/model_weights.ckpt"),
        extra("./x", tarfile.SYMTYPE, "."),
        extra("./x", tarfile.GNUTYPE_SPARSE),
    ],
    ids=lambda member: f"{member.name}-{member.type.decode()}-{member.linkname}",
)
def test_members_that_lead_elsewhere_or_stand_twice_are_refused(tmp_path: Path, member: tarfile.TarInfo) -> None:
    path = nemo(tmp_path / "m.nemo", 1)
    with tarfile.open(path, "a:") as tar:
        tar.addfile(member)
    with pytest.raises(UnreadableError, match=r"leads out|neither a plain file|two files"):
        open_checkpoint(path)


def test_weights_that_are_a_link_are_refused(tmp_path: Path) -> None:
    source = folder(tmp_path / "d", 1)
    (source / "model_weights.ckpt").rename(source / "w")
    (source / "model_weights.ckpt").symlink_to("w")
    with tarfile.open(tmp_path / "m.nemo", "w:") as tar:
        tar.add(source, arcname=".")
    with pytest.raises(UnsupportedError, match="neither a plain file nor a directory"):
        open_checkpoint(tmp_path / "m.nemo")


def test_an_archive_of_nothing_is_refused(tmp_path: Path) -> None:
    tarfile.open(tmp_path / "m.nemo", "w:").close()
    with pytest.raises(UnsupportedError):
        open_checkpoint(tmp_path / "m.nemo")


def test_an_extended_header_that_claims_to_be_large_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "m.nemo"
    info = extra("./x", tarfile.XHDTYPE)
    info.size = 1 << 40
    with path.open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(1 << 41)  # a sparse file may be so long
    with pytest.raises(UnreadableError, match="a header of"):
        open_checkpoint(path)


def test_a_truncated_archive_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    whole = nemo(tmp_path / "m.nemo", 1).read_bytes()
    with tarfile.open(tmp_path / "m.nemo", "r:") as tar:
        last = max(member.offset_data + -(-member.size // 512) * 512 for member in tar.getmembers())
    cut = tmp_path / "cut.nemo"
    for end in [*range(512, last + 1, 512), last - 700, 300, 3]:
        cut.write_bytes(whole[:end])
        with pytest.raises(UnreadableError):
            open_checkpoint(cut)
    cut.write_bytes(whole[: last + 512])
    open_checkpoint(cut)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_to_a_header_opens_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    base = tmp_path_factory.getbasetemp() / "fuzz.nemo"
    if not base.exists():
        nemo(base, 1)
    with tarfile.open(base, "r:") as tar:
        starts = [at for member in tar.getmembers() for at in range(member.offset, member.offset_data, 512)]
    content = bytearray(base.read_bytes())
    at = data.draw(st.sampled_from(starts))
    for _ in range(data.draw(st.integers(1, 3))):
        content[at + data.draw(st.integers(0, 511))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):  # with a right checksum
        content[at + 148 : at + 156] = b" " * 8
        content[at + 148 : at + 156] = b"%06o\0 " % sum(content[at : at + 512])
    path = tmp_path_factory.getbasetemp() / "damaged.nemo"
    path.write_bytes(content)
    try:
        found = open_checkpoint(path)
    except (UnreadableError, UsageError):
        return
    output = tmp_path_factory.getbasetemp() / "fuzzed.nemo"
    output.unlink(missing_ok=True)
    execute(make_plan(from_paths([path]), output))
    assert open_checkpoint(output).weights.keys() == found.weights.keys()
