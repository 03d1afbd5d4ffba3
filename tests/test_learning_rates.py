"""``ckpttool.learning_rates``: what the command line does in one call, as records; logs and files that are odd."""

from __future__ import annotations

import json
import os

import pytest
from counting import count_calls

import ckpttool as ct
from ckpttool.errors import CkpttoolError, OutputExistsError, UnreadableError, UsageError
from ckpttool.schedules.family import ScheduleSpec
from ckpttool.schedules.kinds import find_kind
from ckpttool.schedules.log_match import compare_log
from ckpttool.schedules.rates import noam
from ckpttool.schedules.train_log import compile_pattern, read_log

NOAM = ["--learning-rate", 2, "--model-dim", 512, "--warmup-steps", 800]
NOAM_CALL = {"learning_rate": 2, "model_dim": 512, "warmup_steps": 800}

CONFIG = """\
params:
  learning_rate: 2.0
  decay_type: NoamDecay
  decay_params: {model_dim: 512, warmup_steps: 800}
train: {max_step: 3000}
"""

TWINS = [
    (NOAM, NOAM_CALL),
    (["--lr", 2, *NOAM[2:]], NOAM_CALL),
    ([*NOAM, "--steps", "1,2,100"], {**NOAM_CALL, "steps": [100, 2, 1]}),
    ([*NOAM, "--steps", "1:2000:7,@peak"], {**NOAM_CALL, "steps": "1:2000:7,@peak"}),
    ([*NOAM, "--steps", "all", "--max-step", 900], {**NOAM_CALL, "steps": "all", "max_step": 900}),
    ([*NOAM, "--semantics", "applied"], {**NOAM_CALL, "semantics": "applied"}),
    ([*NOAM, "--semantics", "logged", "--steps", "0:5"], {**NOAM_CALL, "semantics": "logged", "steps": range(6)}),
    ([*NOAM, "--dtype", "float32"], {**NOAM_CALL, "dtype": "float32"}),
    (
        [*NOAM, "--start-decay-steps", 30, "--decay-step-duration", 2, "--minimum-learning-rate", 1e-4],
        {**NOAM_CALL, "start_decay_steps": 30, "decay_step_duration": 2, "minimum_learning_rate": 1e-4},
    ),
    (
        [*NOAM, "--compare", "learning_rate=6,start_decay_steps=10", "--compare", "schedule=rsqrt"],
        {**NOAM_CALL, "compare": [{"learning_rate": 6, "start_decay_steps": 10}, {"schedule": "rsqrt"}]},
    ),
    (["--config", "data.yml"], {"config": "data.yml"}),
    (["--config", "data.yml", "--scale", 6], {"config": "data.yml", "learning_rate": 6}),
    (["--auto-config", "TransformerBase"], {"auto_config": "TransformerBase"}),
    (
        ["--schedule", "rnmt+", "--lr", 1e-3, "--param", "num_replicas=4"],
        {"schedule": "rnmt+", "learning_rate": 1e-3, "parameters": {"num_replicas": 4}},
    ),
    (
        ["--schedule", "linear", "--lr", 1e-3, "--max-step", 500, "--warmup-ratio", 0.1],
        {"schedule": "linear", "learning_rate": 1e-3, "max_step": 500, "warmup_ratio": 0.1},
    ),
]


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.yml").write_text(CONFIG)


@pytest.mark.parametrize(("options", "call"), TWINS)
def test_every_use_of_the_command_is_one_call(run, options, call):
    shown = run("lr-plot-table", *options, "--format", "json")
    assert (shown.exit_code, shown.stderr) == (0, "")
    rates = ct.learning_rates(**call)
    assert [{"step": row.step, **row.rates} for row in rates] == json.loads(shown.stdout)
    assert len(repr(rates)) < 200
    for row in rates:
        assert row.rates.get("applied", row.applied) == row.applied
        assert row.rates.get("logged", row.logged) == row.logged


@pytest.mark.parametrize("name", ["lr.csv", "lr.tsv", "lr.json", "lr.jsonl", "lr.md", "lr.txt", "lr.svg", "lr.png"])
def test_a_file_is_the_same_from_the_command_and_the_call(run, name, tmp_path):
    if name.endswith(("svg", "png")):
        pytest.importorskip("matplotlib")
    assert run("lr-plot-table", *NOAM, "--logx", "-o", f"a/{name}").exit_code == 0
    rates = ct.learning_rates(**NOAM_CALL)
    rates.save(tmp_path / "b" / name, log_x=True)
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with pytest.raises(OutputExistsError, match="exists"):
        rates.save(f"b/{name}")
    rates.save(f"b/{name}", force=True)


def test_a_configuration_is_not_overwritten():
    os.rename("data.yml", "data.json")
    with pytest.raises(OutputExistsError, match="input"):
        ct.learning_rates(config="data.json").save("data.json", force=True)


@pytest.mark.parametrize("framework", ["fairseq", "opennmt-tf", "timm", "joeynmt"])
def test_a_translation_is_the_same_from_the_command_and_the_call(run, framework):
    document = json.loads(run("lr-plot-table", *NOAM, "--as", framework, "--format", "json").stdout)
    found = ct.learning_rates(**NOAM_CALL).translate(framework)
    (peer,) = document["peers"]
    assert (peer["options"], peer["remarks"]) == (list(found.options), list(found.remarks))
    assert [each[framework] for each in peer["rates"]] == [pair.theirs for pair in found.rates]
    assert len(repr(found)) < 200


def test_a_translation_to_all_is_the_same_from_the_command_and_the_call(run):
    document = json.loads(run("lr-plot-table", *NOAM, "--as", "all", "--format", "json").stdout)
    found = ct.learning_rates(**NOAM_CALL).translations()
    assert [peer["name"] for peer in document["peers"]] == [each.name for each in found]


def test_landmarks_are_records():
    (peak,) = ct.learning_rates(**NOAM_CALL).landmarks()
    assert (peak.mark, peak.first, peak.rate) == ("peak", 799, noam(2, 512, 800)(799))


def test_notes_are_with_their_rows():
    notes = {row.step: row.note for row in ct.learning_rates(**NOAM_CALL) if row.note}
    assert notes == {799: "peak (logged)", 800: "peak (applied)"}


SCHEDULE = noam(2, 512, 800)

TF = "Step = {} ; Learning rate = {:f} ; Loss = 1\n"
PY = "[INFO] Step {}/3000; acc: 1.0; ppl: 9.7; xent: 2.1; lr: {:7.5f}; sents: 3; 69/72 tok/s; 206 sec;\n"
EOLE = "[INFO] Step {}/ 3000; acc: 1.0; ppl:  9.7; xent: 2.1; aux: 0.0; lr: {:7.2e}; sents: 3; bsz: 1/1/ 1; 2 sec;\n"


def write_log(path, template, offset, steps=range(20, 6000, 20), schedule=SCHEDULE):
    path.write_text("".join(template.format(step, schedule(step + offset)) for step in steps))
    return path


def test_a_comparison_with_a_log_is_the_same_from_the_command_and_the_call(run, tmp_path):
    log = write_log(tmp_path / "log", TF, 0)
    document = json.loads(run("lr-plot-table", *NOAM, "--compare-log", log, "--format", "json").stdout)
    found = ct.learning_rates(**NOAM_CALL).compare_log(log)
    assert found.verdict.agrees
    assert document["verdict"] == found.verdict.outcome
    assert document["explanation"] == found.verdict.explanation
    assert len(repr(found)) < 200


@pytest.mark.parametrize(
    ("template", "name", "offset"), [(TF, "OpenNMT-tf", 0), (PY, "OpenNMT-py", 0), (EOLE, "Eole", -1)]
)
def test_each_program_is_known_by_its_lines_and_shows_its_own_rate(run, tmp_path, template, name, offset):
    """Eole's line names the rate that update k was applied with, the others' the next update's."""
    steps = range(20, 600, 1) if template is EOLE else range(20, 6000, 20)
    log = write_log(tmp_path / "log", template, offset, steps)
    read = read_log(str(log))
    assert (read.format, read.semantics) == (name, "applied" if offset else "logged")
    assert ct.learning_rates(**NOAM_CALL).compare_log(log).verdict.agrees
    ran = run("lr-plot-table", *NOAM, "--compare-log", log)
    assert ran.exit_code == 0
    assert ("a log of Eole" in ran.stdout) == (name == "Eole")
    other = "logged" if offset else "applied"
    fine = write_log(tmp_path / "fine", template.replace("7.2e", "9.6e").replace("7.5f", "9.8f"), offset, steps)
    assert run("lr-plot-table", *NOAM, "--compare-log", fine, "--semantics", other).exit_code == 4


def test_a_fit_is_the_same_from_the_command_and_the_call(run, tmp_path):
    log = write_log(tmp_path / "log", TF, 0)
    document = json.loads(run("lr-plot-table", "--model-dim", 512, "--fit", log, "--format", "json").stdout)
    found = ct.fit_learning_rates(log, 512)
    assert (
        (document["learning_rate"], document["warmup_steps"]) == (found.fit.scale, found.fit.warmup_steps) == (2, 800)
    )
    assert len(repr(found)) < 200


def test_a_fit_to_a_log_of_applied_rates_says_so_and_never_prints_a_wrong_one(run, tmp_path):
    log = write_log(tmp_path / "log", TF.replace(":f", ":.10f"), -1)
    ran = run("lr-plot-table", "--model-dim", 512, "--fit", log)
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert "the rate that update k was applied with" in ran.stdout
    assert "learning_rate: 2 (from" in ran.stdout
    wrong = run("lr-plot-table", "--model-dim", 512, "--fit", log, "--semantics", "logged")
    assert (wrong.exit_code, wrong.stdout) == (4, "")
    assert "--semantics applied" in wrong.stderr


# --- options that would have no effect ---


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--as", "hf", "--max-step", "9"], "--max-step has no effect on --as"),
        (["--as", "hf", "--format", "csv"], "--format csv is for tables"),
        (["--as", "hf", "--semantics", "logged"], "--semantics has no effect on --as"),
        (["--as", "hf", "--plot"], "--plot has no effect on --as"),
        (["--as", "all", "--steps", "1:9"], "has a column for each of 9 updates"),
        (["--fit", "x", "--steps", "1"], "--steps has no effect on --fit"),
        (["--fit", "x", "--max-step", "9"], "--max-step has no effect on --fit"),
        (["--fit", "x", "--schedule", "linear"], "--fit finds Noam schedules, not linear"),
        (["--compare-log", "x", "--steps", "1"], "--steps has no effect on --compare-log"),
        (["--compare-log", "x", "--logx"], "--logx has no effect on --compare-log"),
    ],
)
def test_an_option_without_effect_is_refused(run, options, says):
    ran = run("lr-plot-table", *NOAM, *options)
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert says in ran.stderr


def test_steps_say_which_updates_a_translation_compares(run):
    ran = run("lr-plot-table", *NOAM, "--as", "fairseq", "--steps", "3,400")
    assert [line.split("\t")[0] for line in ran.stdout.splitlines()[-2:]] == ["3", "400"]
    head = run("lr-plot-table", *NOAM, "--as", "all", "--steps", "3,400").stdout.splitlines()[0]
    assert head.split("\t") == ["--as", "update 3", "update 400", "framework"]


def test_a_variable_for_every_run_does_not_forbid_the_other_questions(run, monkeypatch):
    monkeypatch.setenv("CKPTTOOL_LR_PLOT_TABLE_LOGX", "1")
    assert run("lr-plot-table", *NOAM, "--as", "hf").exit_code == 0


# --- the length of the training ---


def test_max_step_is_the_parameter_of_a_schedule_that_has_one(run):
    ran = run("lr-plot-table", "--schedule", "cosine", "--lr", 1, "--max-step", 1000, "--warmup-steps", 100)
    assert ran.stderr == ""
    rows = list(ct.learning_rates(1, schedule="cosine", max_step=1000, warmup_steps=100))
    assert rows[-1].step == 1000
    assert rows[-1].logged == pytest.approx(0, abs=1e-12)
    (peak,) = ct.learning_rates(1, schedule="cosine", max_step=1000, warmup_steps=100).landmarks()
    assert peak.first == 99  # the cosine, which has run since step 0, is below 0.99 where the warm-up ends


def test_a_cosine_of_a_configuration_keeps_its_own_period(run, tmp_path):
    """OpenNMT-tf's train: max_step ends the training, and leaves the schedule alone."""
    (tmp_path / "c.yml").write_text(
        "params: {learning_rate: 1.0, decay_type: CosineAnnealing}\ntrain: {max_step: 1000}\n"
    )
    for more in ({}, {"max_step": 500}):
        rates = ct.learning_rates(config="c.yml", **more)
        assert rates.schedule.values["max_step"] == 1_000_000
        assert rates.last in (500, 1000)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ({"warmup_ratio": 1, "max_step": 10}, "must be at least 0 and below 1"),
        ({"warmup_ratio": 0.1}, "needs max_step"),
        ({"warmup_ratio": 0.1, "max_step": 10, "warmup_steps": 1}, "say the same"),
        ({"warmup_ratio": 0.1, "max_step": 10, "schedule": "constant"}, "has no warm-up"),
        ({"max_step": 0}, "max_step must be a whole number from 1"),
        ({"warmup_steps": 8, "steps": []}, "steps is empty"),
        ({"warmup_steps": 8, "steps": [-1]}, "'-1' is not a number of updates"),
        ({"warmup_steps": 8, "semantics": "Applied"}, "semantics must be one of"),
        ({"warmup_steps": 8, "dtype": "float16"}, "dtype must be float64 or float32"),
        ({"warmup_steps": 8, "compare": [{"learning_rat": 2}]}, 'compare "learning_rat=2": learning_rat is not'),
    ],
)
def test_the_library_speaks_of_its_parameters(call, says):
    model = {} if call.get("schedule") else {"model_dim": 4}
    with pytest.raises(UsageError) as caught:
        ct.learning_rates(**{"learning_rate": 2, **model, **call})
    assert says in str(caught.value)
    assert "--" not in f"{caught.value} {caught.value.hint}"


# --- odd logs and configurations ---


def spec() -> ScheduleSpec:
    return ScheduleSpec.from_parameters(find_kind("noam"), NOAM_CALL)


def test_a_comparison_takes_calls_in_proportion_to_the_log(tmp_path):
    """Where it disagrees: a restart is looked for by bisection, not at every step before."""
    calls = []
    for count in (2_000, 4_000):
        schedule = noam(2, 512, 800)
        steps = range(100, 100 + 50 * count, 50)
        log = write_log(tmp_path / "log", TF, 0, steps, lambda s: schedule(s) * (1.5 if s > 20_000 else 1))  # noqa: B023
        records = read_log(str(log)).records
        calls.append(count_calls(lambda: compare_log(records, spec())))  # noqa: B023
    assert calls[1] < 2.5 * calls[0]
    assert calls[1] < 100 * 4_000


def test_a_restart_is_found_where_the_curve_is_flat(tmp_path):
    flat = ScheduleSpec.from_parameters(find_kind("noam"), {**NOAM_CALL, "decay_step_duration": 1000})
    logged = flat.rate("logged")
    log = write_log(tmp_path / "log", TF, 0, range(500, 60_000, 500), lambda s: logged(s - 30_000 if s > 30_000 else s))
    records = read_log(str(log)).records
    verdicts = []
    assert count_calls(lambda: verdicts.append(compare_log(records, flat))) < 2_000 * len(records)
    assert verdicts[0].outcome == "restarted warm-up"
    assert "30000" in verdicts[0].explanation


@pytest.mark.parametrize(
    "line",
    [
        "Step = 1 " * 20_000,
        "Step 1; " * 20_000,
        "Step = " + "1" * 200_000,
        "Learning rate = " * 20_000,
        "Step = 5 ; Learning rate = " + "1" * 200_000,
        "lr: " * 50_000,
    ],
)
def test_a_long_line_is_read_in_proportion_to_its_length(tmp_path, line):
    """A line that is searched from every step in it does not end within hours."""
    path = tmp_path / "log"
    path.write_text(f"{line}\n{line}\nStep = 7 ; Learning rate = 0.5\n")
    assert read_log(str(path)).records[-1].step == 7


def test_a_long_line_is_one_line(tmp_path):
    path = tmp_path / "log"
    path.write_text("x" * 200_000 + "\nStep = 7 ; Learning rate = 0.5\n")
    assert read_log(str(path)).records[0].line == 2


def test_a_pattern_of_the_users_sees_the_beginning_of_a_long_line(tmp_path):
    path = tmp_path / "log"
    path.write_text("a " * 100_000 + "\n" + "step 7 lr 0.5 " + "x" * 100_000 + "\n")
    assert read_log(str(path), compile_pattern(r"step (\d+) .*lr (\S+)")).records[0].step == 7


@pytest.mark.parametrize("pattern", ["(" * 500, "(" * 500 + ")" * 500, "(" * 20_000 + ")" * 20_000, "a{99999999999}"])
def test_a_pattern_that_cannot_be_compiled_is_one_short_error(pattern):
    with pytest.raises(UsageError) as caught:
        compile_pattern(pattern)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("step", ["9" * 30, "9" * 400, "9" * 5000])
def test_a_step_that_cannot_be_names_its_line(tmp_path, step):
    path = tmp_path / "log"
    path.write_text(f"Step = {step} ; Learning rate = 0.5\n")
    with pytest.raises(UnreadableError, match="line 1") as caught:
        read_log(str(path))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "options",
    [
        ["--max-step", "9" * 400],
        ["--max-step", "9" * 5000],
        ["--width", "1000000000", "--plot"],
        ["--height", "1000000000", "--plot"],
        ["--warmup-ratio", "nan", "--max-step", "10"],
        ["--steps", "9" * 400],
        ["--steps", "@" + "x" * 5000],
    ],
)
def test_a_huge_value_of_an_option_is_one_error(run, options):
    ran = run("lr-plot-table", "--lr", 2, "--model-dim", 512, *options, "--warmup-steps", 80)
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert ran.stderr.count("Error:") == 1


BOMB = "\n".join(["a0: &a0 {x: 1}", *(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, 60))])


@pytest.mark.parametrize(
    "text",
    [
        f"{BOMB}\nparams: {{<<: *a59}}\n",
        "params: &p {<<: *p}\n",
        "a: &a [*a, *a]\nparams: {? *a : 1}\n",
        "b: &b [x, x]\nc: &c [*b, *b]\nparams:\n  ? *c\n  : 1\n",
        "params: {learning_rate: !!bool x}",
        "params: {learning_rate: !!int ''}",
        "params: {learning_rate: !!float ''}",
        "params: {learning_rate: !!timestamp x}",
        "params: {learning_rate: 2001-99-99}",
        "params: {learning_rate: !!binary '*'}",
        f"params: {{learning_rate: {'9' * 5000}}}",
        f"params: {{learning_rate: {'9' * 400}}}",
        f"params: {{learning_rate: {'x' * 100_000}}}",
        f"params: {{learning_rate: 2.0, decay_type: RsqrtDecay, decay_params: {{warmup_steps: {'9' * 400}}}}}",
        f"params: {{learning_rate: 1.0}}\ntrain: {{max_step: {'9' * 400}}}",
        "params: {learning_rate: .inf}",
        "params: {learning_rate: .nan}",
        "[" * 100_000,
        "{" * 100_000,
        "- " * 100_000,
        f"# {'x' * 300_000}\nparams: {{learning_rate: 1.0}}\n",
    ],
)
def test_an_odd_configuration_is_one_short_error_with_exit_6(run, tmp_path, text):
    (tmp_path / "odd.yml").write_text(text)
    ran = run("lr-plot-table", "--config", "odd.yml")
    assert (ran.exit_code, ran.stdout) == (6, "")
    assert ran.stderr.count("Error:") == 1
    assert "odd.yml" in ran.stderr
    assert len(ran.stderr) < 600


def test_a_missing_configuration_is_exit_6(run, tmp_path):
    assert run("lr-plot-table", "--config", "missing.yml").exit_code == 6
    assert run("lr-plot-table", "--config", tmp_path).exit_code == 6
    with pytest.raises(CkpttoolError, match="missing"):
        ct.learning_rates(config="missing.yml")


# --- pictures of landmarks ---


def test_landmarks_alone_are_marked_in_a_picture_of_the_whole_curve(tmp_path):
    rates = ct.learning_rates(**NOAM_CALL, steps="@peak", max_step=5000)
    assert [row.step for row in rates] == [799, 800]
    picture = rates.picture(50)
    assert (picture.first, picture.last) == (1, 5000)
    assert [line.marked for line in picture.lines] == [(((800, SCHEDULE(799)), "peak"),)]
    assert ct.learning_rates(**NOAM_CALL, steps="@peak,1:900").picture(50).lines[0].marked == ()
    pytest.importorskip("matplotlib")
    rates.save(tmp_path / "a.svg")
    assert ">peak<" in (tmp_path / "a.svg").read_text()
    both = ct.learning_rates(**NOAM_CALL, steps="@peak,@floor", minimum_learning_rate=1e-4, max_step=900_000)
    both.save(tmp_path / "b.svg")
    svg = (tmp_path / "b.svg").read_text()
    # One of two neighbours would cover the other.
    assert [text in svg for text in (">peak<", ">above floor<", ">last at floor<", ">back at floor<")] == [1, 1, 0, 1]


def test_a_terminal_shows_the_whole_curve_for_a_landmark(run):
    ran = run("lr-plot-table", *NOAM, "--steps", "@peak", "--semantics", "applied", "--plot")
    assert ran.exit_code == 0
    assert "100k" in ran.stderr


# --- logs of other kinds ---


def test_a_trainer_state_is_read(run, tmp_path):
    """transformers' Trainer writes every digit, and names the update that has the rate."""
    rates = ct.learning_rates(1e-3, schedule="linear", warmup_steps=10, max_step=200, steps="all")
    history = [{"epoch": 0.1, "loss": 1.0, "step": row.step, "learning_rate": row.applied} for row in rates]
    state = {"best_metric": None, "global_step": 200, "log_history": [*history, {"eval_loss": 2.0, "step": 200}]}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    found = rates.compare_log("trainer_state.json")
    assert (found.log.format, found.semantics) == ("transformers' Trainer", "applied")
    assert (found.verdict.outcome, found.verdict.compared) == ("agrees", 200)
    options = ["--schedule", "linear", "--lr", 1e-3, "--warmup-steps", 10, "--max-step", 200]
    ran = run("lr-plot-table", *options, "--compare-log", "trainer_state.json")
    assert ran.exit_code == 0
    assert "a log of transformers' Trainer: step k shows the rate that update k was applied with" in ran.stdout
    older = run("lr-plot-table", *options, "--compare-log", "trainer_state.json", "--semantics", "logged")
    assert older.exit_code == 4
    assert "--semantics applied" in older.stderr


def test_metrics_of_lightning_are_read(tmp_path):
    rates = ct.learning_rates(1e-3, schedule="linear", warmup_steps=10, max_step=200, steps=range(200))
    rows = [f"0,{row.logged},{row.step},\n0,,{row.step},0.5\n" for row in rates]
    (tmp_path / "metrics.csv").write_text("epoch,lr-Adam,step,train_loss\n" + "".join(rows) + "0,")
    found = rates.compare_log("metrics.csv")
    assert (found.log.format, found.semantics) == ("Lightning", "logged")
    assert (found.verdict.outcome, found.verdict.compared) == ("agrees", 200)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", ""),
        ("a.json", "[1]"),
        ("a.json", "[" * 100_000),
        ("a.json", "9" * 5000),
        ("a.json", '{"log_history": 5}'),
        ("a.json", '{"log_history": [5, {"step": 1}, {"learning_rate": 1}]}'),
        ("a.json", '{"log_history": [{"step": 1.5, "learning_rate": 1}]}'),
        ("a.json", '{"log_history": [{"step": 1, "learning_rate": "x"}]}'),
        ("a.json", '{"log_history": [{"step": 1, "learning_rate": [[]]}]}'),
        ("a.json", '{"log_history": [{"step": true, "learning_rate": null}]}'),
        ("a.csv", ""),
        ("a.csv", "step,loss\n1,2\n"),
        ("a.csv", "lr,loss\n1,2\n"),
        ("a.csv", "step,lr\n1,\n"),
        ("a.csv", "step,lr\nx,1\n"),
        ("a.csv", "lr,step\n1\n"),
        ("a.csv", "step,lr\n1,²\n"),
        ("a.csv", 'step,lr\n1,"' + "x" * 200_000),
        ("a.csv", "step,lr\n" + "1" * 200_000 + ",1\n"),
        ("a.csv", "step,lr\n1,1\0\n"),
    ],
)
def test_an_odd_log_of_these_is_one_short_error(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(UnreadableError) as caught:
        read_log(name)
    assert len(str(caught.value)) < 300
    assert name in str(caught.value)
