"""``ckpttool lr-plot-table``: rows, formats, pictures, and one clear error for every bad input."""

from __future__ import annotations

import csv
import io
import json
import os
import stat
import subprocess
import sys
import tracemalloc
from contextlib import suppress
from itertools import pairwise

import pytest
from counting import count_calls
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckpttool.cli.lr_schedule.terminal import draw
from ckpttool.schedules.family import ScheduleSpec
from ckpttool.schedules.float32 import noam_applied, noam_logged
from ckpttool.schedules.kinds import KINDS, find_kind
from ckpttool.schedules.picture import make_picture
from ckpttool.schedules.rates import noam, wrap
from ckpttool.schedules.steps import parse_steps, salient_steps
from ckpttool.schedules.table import FORMATS

NOAM = ("lr-plot-table", "--learning-rate", 2, "--model-dim", 768, "--warmup-steps", 8000)
SCHEDULE = noam(2, 768, 8000)


def table(text: str, separator: str = "\t") -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text), delimiter=separator))


# --- rows ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,2,100", [1, 2, 100]),
        ("100, 2 ,1,2", [1, 2, 100]),
        ("4000:5000:500", [4000, 4500, 5000]),
        ("1:10:4", [1, 5, 9]),
        ("3:5", [3, 4, 5]),
        ("7:7", [7]),
        ("1_000", [1000]),
        ("log:1:1000:4", [1, 10, 100, 1000]),
        ("log:1:3:25", [1, 2, 3]),
        ("log:5:5:2", [5]),
        ("all", [*range(1, 21)]),
        ("3:9:3,all,5", [*range(1, 21)]),
        ("@peak,1", [1, 7, 8]),
    ],
)
def test_steps_come_ascending_and_once_each(text, expected):
    selection = parse_steps(text)
    marked = [8, 7, 8] if "@peak" in selection.markers else []
    assert list(selection.iterate(20, marked)) == expected
    assert selection.last(20, marked) == expected[-1]
    assert selection.first(marked) == expected[0]


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500), st.integers(1, 50)), min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_any_ranges_are_their_sorted_union(items):
    text = ",".join(f"{first}:{first + length}:{stride}" for first, length, stride in items)
    union = {step for first, length, stride in items for step in range(first, first + length + 1, stride)}
    assert list(parse_steps(text).iterate(10)) == sorted(union)


@given(st.integers(1, 10**12), st.integers(0, 10**12), st.integers(2, 200))
@settings(max_examples=50, deadline=None)
def test_logarithmic_steps_keep_their_ends(first, length, count):
    steps = list(parse_steps(f"log:{first}:{first + length}:{count}").iterate(1))
    assert (steps[0], steps[-1]) == (first, first + length)
    assert len(steps) <= count
    assert steps == sorted(set(steps))


def test_salient_steps_are_1_2_5_10_and_landmarks_inside():
    assert list(salient_steps(60, [7, 600, 0]).iterate(60)) == [1, 2, 5, 7, 10, 20, 50, 60]


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("", "''"),
        ("1,,2", "empty item"),
        ("10:1", "'10:1' is an empty range"),
        ("5:9:0", "'5:9:0' has a stride of 0"),
        ("1:2:3:4", "'1:2:3:4'"),
        ("-3", "negative step -3"),
        ("1:-3", "negative step -3"),
        ("1:x", "'x' instead of a whole number"),
        ("1.5", "'1.5' instead of a whole number"),
        ("²", "'²' instead of a whole number"),
        ("1e3", "'1e3'"),
        ("9999999999999999", "beyond 10^15"),
        ("@peek", "'@peek'"),
        ("log:1:10", "'log:1:10' is not log:first:last:count"),
        ("log:0:10:5", "starts below 1"),
        ("log:10:1:5", "empty range"),
        ("log:1:10:1", "asks for 1 steps"),
        ("@floor", "never meets its floor"),
    ],
)
def test_a_bad_list_of_steps_points_at_its_item(run, text, quoted):
    ran = run(*NOAM, "--steps", text)
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert "--steps" in ran.stderr
    assert quoted in ran.stderr
    assert ran.stderr.count("Error:") == 1


def test_update_k_is_applied_with_what_the_step_before_logged(run):
    rows = table(run(*NOAM, "--steps", "1:40").stdout)
    assert [row["step"] for row in rows] == [str(k) for k in range(1, 41)]
    for row in rows:
        assert float(row["applied"]) == SCHEDULE(int(row["step"]) - 1)
        assert float(row["logged"]) == SCHEDULE(int(row["step"]))


def test_scattered_rows_have_the_rates_of_contiguous_ones(run):
    every = {row["step"]: row for row in table(run(*NOAM, "--steps", "1:2000").stdout)}
    some = table(run(*NOAM, "--steps", "1,2,3,10:1000:7,2000").stdout)
    assert all(every[row["step"]] == row for row in some)


def test_step_0_was_logged_but_is_no_update(run):
    assert run(*NOAM, "--steps", "0:1", "--no-header").stdout.startswith("0\t\t1.0085")
    assert json.loads(run(*NOAM, "--steps", "0", "--format", "json").stdout)[0]["applied"] is None
    assert run(*NOAM, "--steps", "0", "--semantics", "logged").stdout.split()[-1] == repr(SCHEDULE(0))
    refused = run(*NOAM, "--steps", "0:5", "--semantics", "applied")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "counted from 1" in refused.stderr


def test_float32_follows_the_graph_for_applied_and_the_log_line_for_logged(run):
    rows = table(run(*NOAM, "--steps", "7000:9000", "--dtype", "float32").stdout)
    applied, logged = noam_applied(2, 768, 8000), noam_logged(2, 768, 8000)
    assert [float(row["applied"]) for row in rows] == [applied(k - 1) for k in range(7000, 9001)]
    assert [float(row["logged"]) for row in rows] == [logged(k) for k in range(7000, 9001)]
    assert any(a["logged"] != b["applied"] for a, b in pairwise(rows))


def test_default_rows_have_every_landmark(run):
    ran = run(*NOAM, "--start-decay-steps", 10000, "--minimum-learning-rate", "1e-4", "--format", "table")
    notes = {line.split()[0]: line[36:].strip() for line in ran.stdout.splitlines() if "(" in line}
    assert notes["10001"] == "start (applied)"
    assert notes["10991"] == "last at floor (applied); above floor (logged)"
    assert notes["18000"] == "peak (applied)"
    assert "is back at its floor at update 530834" in ran.stdout


def test_a_plateau_has_its_first_and_last_row(run):
    ran = run(*NOAM, "--decay-step-duration", 4, "--steps", "@peak", "--semantics", "applied")
    assert [row["step"] for row in table(ran.stdout)] == ["31997", "32000"]


def test_schedules_side_by_side_have_a_column_each_named_by_what_differs(run):
    ran = run(
        *NOAM, "--compare", "learning_rate=6,start_decay_steps=100", "--compare", "schedule=rsqrt", "--steps", 500
    )
    (row,) = table(ran.stdout)
    assert list(row) == [
        "step",
        "applied:schedule=noam learning_rate=2 model_dim=768",
        "logged:schedule=noam learning_rate=2 model_dim=768",
        "applied:learning_rate=6 start_decay_steps=100",
        "logged:learning_rate=6 start_decay_steps=100",
        "applied:schedule=rsqrt",
        "logged:schedule=rsqrt",
    ]
    assert float(row["applied:learning_rate=6 start_decay_steps=100"]) == wrap(noam(6, 768, 8000), 100)(499)


# --- formats ---

_EXTENSIONS = {"table": ".txt", "csv": ".csv", "tsv": ".tsv", "json": ".json", "jsonl": ".jsonl", "markdown": ".md"}


def test_every_format_has_the_same_rates(run):
    expected = [(k, SCHEDULE(k - 1), SCHEDULE(k)) for k in (1, 2, 8000)]
    out = {name: run(*NOAM, "--steps", "1,2,8000", "--format", name).stdout for name in FORMATS}
    keys = ("step", "applied", "logged")
    assert [tuple(json.loads(row[key]) for key in keys) for row in table(out["csv"], ",")] == expected
    assert [tuple(json.loads(row[key]) for key in keys) for row in table(out["tsv"])] == expected
    assert [tuple(row[key] for key in keys) for row in json.loads(out["json"])] == expected
    assert [tuple(json.loads(line)[key] for key in keys) for line in out["jsonl"].splitlines()] == expected
    for name, cells in (("markdown", slice(1, 4)), ("table", slice(0, 3))):
        shown = [line.replace("|", " | ").split() for line in out[name].splitlines()[-3:]]
        shown = [[cell for cell in line if cell != "|"][:3] for line in shown]
        assert [(int(k), float(a), float(b)) for k, a, b in shown] == [
            (k, pytest.approx(a, rel=1e-6), pytest.approx(b, rel=1e-6)) for k, a, b in expected
        ], cells


@pytest.mark.parametrize("name", ["csv", "tsv", "table", "markdown"])
def test_without_header_only_rows_are_left(run, name):
    ran = run(*NOAM, "--steps", "5:7", "--format", name, "--no-header")
    assert len(ran.stdout.splitlines()) == 3


def test_in_a_pipe_auto_is_tsv_and_stderr_is_silent(run):
    ran = run(*NOAM, "--steps", "1")
    assert (ran.stdout.splitlines()[0], ran.stderr) == ("step\tapplied\tlogged", "")


def test_an_empty_json_selection_cannot_be_and_one_row_is_valid(run):
    assert len(json.loads(run(*NOAM, "--steps", "3", "--format", "json").stdout)) == 1


# --- pictures and files ---


def test_a_picture_with_piped_data_goes_to_stderr(run):
    ran = run(*NOAM, "--plot", "--steps", "1:20000:100", "--width", 60)
    assert ran.stdout.startswith("step\tapplied\tlogged\n1\t")
    lines = ran.stderr.splitlines()
    assert lines[0] == "noam: learning_rate=2, model_dim=768, warmup_steps=8000"
    assert max(map(len, lines)) <= 60
    assert "\x1b" not in ran.stderr
    assert any("⠀" in line for line in lines)


def test_a_peak_one_step_wide_is_seen_in_a_picture_of_a_million_steps(run):
    ran = run(
        "lr-plot-table", "--learning-rate", 1, "--model-dim", 1, "--warmup-steps", 1, "--max-step", 10**6,
        "--plot", "--width", 60, "--height", 10,
    )  # fmt: skip
    drawn = [line for line in ran.stderr.splitlines() if "│" in line or "┤" in line]
    assert len(drawn) == 10
    assert all(line.split("│")[-1].split("┤")[-1].strip("⠀ ") for line in drawn), "the riser is unbroken"


def test_a_staircase_has_unbroken_risers():
    parameters = {"learning_rate": 2, "model_dim": 4, "warmup_steps": 5, "decay_step_duration": 40}
    spec = ScheduleSpec.from_parameters(find_kind("noam"), parameters)
    picture = make_picture([("", "", spec)], title="", shows="applied", first=1, last=200, columns=50)
    drawn = [line.split("|")[-1].split("+")[-1] for line in draw(picture, 62, 20, braille=False, colour=False)[1:21]]
    columns = [[row for row, line in enumerate(drawn) if line[column : column + 1] == "*"] for column in range(50)]
    for here, there in pairwise(columns):
        assert here == list(range(here[0], here[-1] + 1))
        assert min(abs(a - b) for a in here for b in there) <= 1


def test_one_step_makes_no_picture(run):
    ran = run(*NOAM, "--steps", 5, "--plot")
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert "--no-plot" in ran.stderr


PY = [sys.executable, "-m", "ckpttool", *map(str, NOAM)]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437"])
def test_an_encoding_without_braille_gets_an_ascii_picture(encoding):
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "LC_ALL": "C", "PYTHONUTF8": "0"}
    ran = subprocess.run([*PY, "--plot", "--format", "table"], capture_output=True, env=environment, check=True)
    assert ran.stdout.isascii()
    assert ran.stderr.isascii()
    assert b"*" in ran.stderr


def on_terminal(columns: int, *options: str, **environment: str) -> str:
    """What the command shows on a terminal of that width."""
    pty = pytest.importorskip("pty")
    ours, its = pty.openpty()
    variables = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm-256color", "PYTHONUTF8": "1", **environment}
    with subprocess.Popen([*PY, *options], stdin=its, stdout=its, stderr=its, env=variables) as process:
        os.close(its)
        shown = b""
        with suppress(OSError):  # Linux says EIO when the other side is closed
            while part := os.read(ours, 65536):
                shown += part
        assert process.wait() == 0
    os.close(ours)
    return shown.decode("utf-8").replace("\r\n", "\n")


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("more", [[], ["--compare", "learning_rate=6"]])
def test_on_a_terminal_picture_and_table_keep_its_width(columns, more):
    shown = on_terminal(columns, "--minimum-learning-rate", "1e-4", *more, NO_COLOR="1")
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) <= columns
    picture, table_ = shown.split("  update k\n", 1)
    assert "┤" in picture
    assert "note" in table_ or columns == 60
    assert shown.count("warmup_steps=8000") == 1
    assert len([line for line in table_.splitlines() if line.split()[:1] == ["8000"]]) == 1


def test_on_a_terminal_curves_have_colours_unless_it_is_dumb():
    assert "\x1b[" in on_terminal(80, "--compare", "learning_rate=6")
    assert "\x1b[" not in on_terminal(80, "--compare", "learning_rate=6", TERM="dumb")


def test_on_an_ascii_terminal_everything_is_ascii():
    shown = on_terminal(60, PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL="C")
    assert shown.isascii()
    assert "+---" in shown


def test_a_quiet_terminal_shows_the_table_alone():
    assert on_terminal(80, "-q", "--steps", "1:3").startswith("noam: ")


def test_a_reader_that_has_seen_enough_is_no_error():
    with subprocess.Popen([*PY, "--steps", "1:3000000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"step\tapplied\tlogged\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


def test_a_table_loads_nothing_heavy():
    code = (
        "import sys\nfrom ckpttool.cli import group\n"
        f"group.main({[str(a) for a in NOAM]!r}, standalone_mode=False)\n"
        "heavy = {'numpy', 'torch', 'matplotlib', 'rich', 'yaml', 'ml_dtypes', 'safetensors'}\n"
        "sys.exit(repr(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize("name", FORMATS)
def test_a_long_table_streams_in_constant_memory(run, tmp_path, name):
    tracemalloc.start()
    try:
        assert run(*NOAM, "--steps", "1:20000", "-q", "-o", tmp_path / f"a{_EXTENSIONS[name]}").exit_code == 0
        _now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert os.path.getsize(tmp_path / f"a{_EXTENSIONS[name]}") > 600_000
    assert peak < 600_000  # 20,000 rows as strings are several million bytes


def test_files_of_every_kind_are_written_by_their_extension(run, tmp_path):
    pytest.importorskip("matplotlib")
    names = ["a.csv", "a.tsv", "a.json", "a.jsonl", "a.md", "a.txt", "a.svg", "a.PNG"]
    ran = run(*NOAM, *(part for name in names for part in ("-o", tmp_path / name)))
    assert (ran.exit_code, ran.stdout) == (0, "")
    assert len(ran.stderr.splitlines()) == len(names)
    assert sorted(os.listdir(tmp_path)) == sorted(names)
    assert (tmp_path / "a.csv").read_text().startswith("step,applied,logged\n")
    assert json.loads((tmp_path / "a.json").read_text())
    assert (tmp_path / "a.PNG").read_bytes().startswith(b"\x89PNG")
    svg = (tmp_path / "a.svg").read_text()
    assert "warmup_steps=8000" in svg
    assert "<dc:date>" not in svg
    assert "http" not in svg.replace("http://www.w3.org", "").replace("https://matplotlib.org", "").replace(
        "http://purl.org", ""
    ).replace("http://creativecommons.org", "")


def test_a_picture_made_twice_has_the_same_bytes(run, tmp_path):
    pytest.importorskip("matplotlib")
    for name in ("a.svg", "b.svg", "a.png", "b.png"):
        run(*NOAM, "--logx", "--logy", "--compare", "learning_rate=6", "-o", tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_output_and_an_explicit_format_give_both(run, tmp_path):
    ran = run(*NOAM, "--steps", "1:5", "-o", tmp_path / "a.json", "--format", "csv")
    assert ran.stdout.startswith("step,applied")
    assert len(json.loads((tmp_path / "a.json").read_text())) == 5


def test_existing_output_is_refused_and_forced(run, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("mine")
    refused = run(*NOAM, "-o", path)
    assert refused.exit_code == 5
    assert path.read_text() == "mine"
    assert "--force" in refused.stderr
    assert run(*NOAM, "-fo", path).exit_code == 0
    assert path.read_text() != "mine"


def test_output_has_the_mode_that_the_umask_leaves(run, tmp_path):
    before = os.umask(0o027)
    try:
        run(*NOAM, "-o", tmp_path / "a.csv")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.csv").stat().st_mode) == 0o640


def test_output_that_is_the_config_is_refused_even_with_force(run, tmp_path):
    path = tmp_path / "data.json"
    path.write_text("params: {learning_rate: 1}")
    ran = run("lr-plot-table", "--config", path, "-fo", path)
    assert ran.exit_code == 5
    assert "input" in ran.stderr


def test_unwritable_output_leaves_nothing_behind(run, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert run(*NOAM, "-o", tmp_path / "file" / "a.csv").exit_code == 7
    assert run(*NOAM, "-o", tmp_path).exit_code == 2
    assert os.listdir(tmp_path) == ["file"]


def test_a_missing_directory_of_the_output_is_made(run, tmp_path):
    assert run(*NOAM, "-o", tmp_path / "new" / "lr.csv").exit_code == 0
    assert os.listdir(tmp_path / "new") == ["lr.csv"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_failure_while_writing_leaves_nothing_behind(run, tmp_path, monkeypatch):
    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    ran = run(*NOAM, "-o", tmp_path / "a.csv")
    assert ran.exit_code == 7
    assert "No space left" in ran.stderr
    assert os.listdir(tmp_path) == []


def test_a_picture_without_matplotlib_says_what_to_install(run, tmp_path, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "matplotlib" else found(name, *a))
    ran = run(*NOAM, "-o", tmp_path / "a.svg")
    assert ran.exit_code == 2
    assert "ckpttool[plot]" in ran.stderr


# --- bad input ---


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--model-dim", "0"], "--model-dim must be a whole number of at least 1, not 0"),
        (["--model-dim", "abc"], "'--model-dim': 'abc' is not a number"),
        (["--warmup-steps", "-1"], "--warmup-steps must be a whole number of at least 0, not -1"),
        (["--warmup-steps", "0.5"], "--warmup-steps must be a whole number"),
        (["--decay-step-duration", "0"], "--decay-step-duration must be a whole number of at least 1, not 0"),
        (["--start-decay-steps", "-5"], "--start-decay-steps must be a whole number of at least 0, not -5"),
        (["--minimum-learning-rate", "-1"], "--minimum-learning-rate must be at least 0, not -1"),
        (["--learning-rate", "nan"], "--learning-rate must be a finite number, not nan"),
        (["--scale", "0"], "--learning-rate must be greater than 0, not 0"),
        (["--max-step", "0"], "--max-step"),
        (["--schedule", "noan"], "Did you mean 'noam'?"),
        (["--param", "eta_min"], "'eta_min' is not NAME=VALUE"),
        (["--param", "eta_min=1"], "--param eta_min is not a parameter of the noam schedule"),
        (["--compare", "learning_rat=3"], "Did you mean 'learning_rate'?"),
        (["--compare", "learning_rate=2"], "changes nothing"),
        (["--compare", "model_dim=0"], '--compare "model_dim=0": model_dim must be'),
        (["--compare", "model_dim=x"], "model_dim must be a whole number of at least 1, not 'x'"),
        (["--compare", "scale=3,scale=4"], "is there twice"),
        (["--compare", "scale=3", "--compare", "learning_rate=3"], "is there twice"),
        (["--compare", "schedule=linear"], "max_step is missing"),
        (["--as", "farseq"], "Did you mean 'fairseq'?"),
        (["--as", "hf", "--schedule", "rsqrt", "--model-dim", "1"], "--model-dim is not a parameter of the rsqrt"),
        (["--as", "hf", "--warmup-steps", "0"], "--warmup-steps of at least 1"),
        (["--as", "hf", "--fit", "x"], "--as and --fit are different questions"),
        (["--as", "hf", "-o", "x.csv"], "-o writes tables and pictures"),
        (["--as", "hf", "--compare", "scale=3"], "--compare puts schedules side by side"),
        (["--log-pattern", "x"], "--log-pattern is for --compare-log and --fit"),
        (["--auto-config", "Transfomer"], "Did you mean 'Transformer'?"),
        (["-o", "x.pdf"], "-o x.pdf"),
        (["-o", "x"], "-o x"),
        (["-o", "x.csv", "-o", "x.csv"], "-o x.csv is there twice"),
        (["--format", "xml"], "--format"),
        (["--steps", "@peak", "--minimum-learning-rate", "1"], "the floor hides it"),
    ],
)
def test_bad_input_gives_one_error_that_names_the_option(run, options, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = run(*NOAM, *options)
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert says in ran.stderr
    assert "Traceback" not in ran.stderr
    assert ran.stderr.count("Error:") == 1
    assert os.listdir(tmp_path) == []


_VALUES = st.sampled_from(
    ["0", "1", "-1", "7", "0.5", "1e3", "1e-300", "1e308", "nan", "inf", "x", "", "9" * 25, "9" * 400]
)
_COUNTS = ["--model-dim", "--warmup-steps", "--start-decay-steps", "--decay-step-duration", "--max-step"]
_OPTIONS = st.sampled_from(["--scale", "--minimum-learning-rate", *_COUNTS])
_KIND = st.sampled_from([kind.name for kind in KINDS])
_MORE = st.sampled_from([["num_replicas"], ["max_step"], ["eta_min"], ["timescale"], ["end_step"], ["decay_ratio"], []])


@given(kind=_KIND, given_=st.dictionaries(_OPTIONS, _VALUES), more=_MORE, value=_VALUES)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_value_of_any_option_causes_a_traceback(run, kind, given_, more, value):
    options = [f"{name}={text}" for name, text in given_.items()]
    ran = run("lr-plot-table", "--schedule", kind, *options, *(f"--param={name}={value}" for name in more))
    assert ran.exit_code in (0, 2), ran.stderr
    assert ran.stderr.count("Error:") == (ran.exit_code != 0)
    assert "nan" not in ran.stdout


def test_missing_parameters_are_named_together_with_an_example(run):
    ran = run("lr-plot-table", "--learning-rate", 2)
    assert ran.exit_code == 2
    assert "the noam schedule needs --model-dim and --warmup-steps" in ran.stderr
    assert "For example: ckpttool lr-plot-table --learning-rate 2" in ran.stderr


def test_a_floor_above_the_peak_is_warned_of(run):
    assert "the rate is constant" in run(*NOAM, "--minimum-learning-rate", "0.01").stderr


def test_a_peak_after_the_end_of_training_is_warned_of(run):
    assert "the peak is at update 8000" in run(*NOAM, "--max-step", 5000).stderr


# --- configurations ---

CONFIG = """\
params:
  learning_rate: 2.0
  decay_type: NoamDecay
  decay_params:
    model_dim: 768
    warmup_steps: 8000
train:
  max_step: 200
"""


def test_a_config_gives_the_schedule_and_options_win(run, tmp_path):
    path = tmp_path / "data.yml"
    path.write_text(CONFIG)
    assert run("lr-plot-table", "--config", path, "--steps", "5").stdout == run(*NOAM, "--steps", "5").stdout
    assert len(run("lr-plot-table", "--config", path, "--steps", "all").stdout.splitlines()) == 201
    (row,) = table(run("lr-plot-table", "--config", path, "--scale", 6, "--steps", "5").stdout)
    assert float(row["logged"]) == noam(6, 768, 8000)(5)


def test_a_bad_value_in_a_config_is_exit_6_with_its_line_and_an_option_mends_it(run, tmp_path):
    path = tmp_path / "data.yml"
    path.write_text(CONFIG.replace("768", "0"))
    ran = run("lr-plot-table", "--config", path)
    assert ran.exit_code == 6
    assert "data.yml, line 5: decay_params: model_dim must be" in ran.stderr
    assert run("lr-plot-table", "--config", path, "--model-dim", 768).exit_code == 0


def test_a_parameter_that_decay_params_dropped_is_exit_6_and_an_option_mends_it(run, tmp_path):
    path = tmp_path / "data.yml"
    path.write_text("params:\n  decay_params: {warmup_steps: 4000}\n")
    ran = run("lr-plot-table", "--config", path, "--auto-config", "TransformerBase")
    assert ran.exit_code == 6
    assert "line 2: decay_params has no model_dim" in ran.stderr
    assert "replaces what --auto_config gives TransformerBase as a whole" in ran.stderr
    mended = run("lr-plot-table", "--config", path, "--auto-config", "TransformerBase", "--model-dim", 512)
    assert mended.exit_code == 0


def test_another_schedule_takes_from_a_config_what_it_has(run, tmp_path):
    path = tmp_path / "data.yml"
    path.write_text(CONFIG)
    ran = run("lr-plot-table", "--config", path, "--schedule", "linear", "--warmup-steps", 20, "--steps", "@peak,200")
    rows = table(ran.stdout)
    assert float(rows[0]["logged"]) == 2.0
    assert float(rows[-1]["logged"]) == 0.0


# --- the other questions ---


def test_equivalents_come_with_their_peak_as_text_and_as_json(run):
    ran = run(*NOAM, "--as", "fairseq")
    assert f"--lr {2 / (768 * 8000) ** 0.5!r}"[:14] in ran.stdout
    assert "update 1 has rate 0" in ran.stdout
    document = json.loads(run(*NOAM, "--as", "all", "--format", "json").stdout)
    assert {"fairseq", "hf", "marian"} <= {peer["name"] for peer in document["peers"]}


def test_equivalents_leave_the_wrapper_out_with_a_warning(run):
    ran = run(*NOAM, "--as", "marian", "--minimum-learning-rate", "1e-5")
    assert ran.exit_code == 0
    assert "minimum_learning_rate" in ran.stderr


@pytest.fixture
def log(tmp_path):
    def write(rate, steps=range(100, 20_000, 100)):
        path = tmp_path / "train.log"
        path.write_text("".join(f"Step = {s} ; Learning rate = {rate(s):f} ; Loss = 1\n" for s in steps))
        return path

    return write


def test_a_log_that_agrees_is_exit_0_and_another_is_exit_4(run, log):
    agrees = run(*NOAM, "--compare-log", log(SCHEDULE))
    assert (agrees.exit_code, agrees.stderr) == (0, "")
    assert "agrees" in agrees.stdout
    other = run(*NOAM, "--compare-log", log(noam(3, 768, 8000)), "--format", "json")
    assert other.exit_code == 4
    document = json.loads(other.stdout)
    assert document["verdict"] == "different parameters"
    assert document["first_difference"]["step"] == 100
    assert "Error:" in other.stderr


def test_a_fit_is_printed_with_its_bounds_and_is_exit_4_where_nothing_fits(run, log):
    path = log(SCHEDULE, range(100, 50_000, 100))
    ran = run("lr-plot-table", "--model-dim", 768, "--fit", path)
    assert ran.exit_code == 0
    assert "learning_rate: 2 (from" in ran.stdout
    assert "warmup_steps: 8000 (from" in ran.stdout
    assert "sqrt(model_dim)" in run("lr-plot-table", "--fit", path).stdout
    assert run("lr-plot-table", "--model-dim", 768, "--fit", log(lambda s: s**0.5 * 1e-5)).exit_code == 0
    assert run("lr-plot-table", "--model-dim", 768, "--fit", log(lambda s: (s % 700) * 1e-6)).exit_code == 4


def test_a_log_without_rates_is_exit_6(run, tmp_path):
    (tmp_path / "x").write_text("nothing\n")
    assert run(*NOAM, "--compare-log", tmp_path / "x").exit_code == 6
    assert run(*NOAM, "--compare-log", tmp_path / "missing").exit_code == 6


def test_a_log_comes_from_stdin_too(log):
    data = log(SCHEDULE).read_bytes()
    ran = subprocess.run([*PY, "--compare-log", "-"], input=data, capture_output=True, check=True)
    assert b"agrees" in ran.stdout


# --- speed ---


def test_each_rate_of_a_long_table_is_computed_once(run, tmp_path):
    calls = [
        count_calls(lambda: run(*NOAM, "--steps", f"1:{rows}", "-qfo", tmp_path / "a.csv"))  # noqa: B023
        for rows in (2_000, 12_000)
    ]
    assert (calls[1] - calls[0]) / 10_000 < 1.5
