"""Reading training logs, and telling whether they agree with a schedule."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpttool.errors import UnreadableError, UsageError
from ckpttool.schedules.family import ScheduleSpec
from ckpttool.schedules.kinds import find_kind
from ckpttool.schedules.log_match import compare_log, fit_noam
from ckpttool.schedules.train_log import compile_pattern, read_log

TF = (
    "INFO:tensorflow:Step = {step} ; steps/s = 1.25, source words/s = 9000 ; Learning rate = {rate:f} ; Loss = 3.386743"
)
TF_2_32 = "INFO: Step = {step} ; steps/s = 1.25, tokens/s = 9000 (4500 source) ; Learning rate = {rate:f} ; Loss = 3.38"
PY = "[2019-12-04 15:33:53 INFO] Step {step}/100000; acc: 0.01; ppl: 9227.77; lr: {rate:7.5f}; 69/72 tok/s; 206 sec"


def records_of(path, pattern=None):
    return list(read_log(path, pattern).records)


def spec(**parameters) -> ScheduleSpec:
    base = {"learning_rate": 2, "model_dim": 512, "warmup_steps": 8000}
    return ScheduleSpec.from_parameters(find_kind("noam"), {**base, **parameters})


def written(tmp_path, template, steps, rate) -> str:
    path = tmp_path / "train.log"
    path.write_text("Training starts\n" + "".join(template.format(step=s, rate=rate(s)) + "\n" for s in steps))
    return str(path)


@pytest.mark.parametrize("template", [TF, TF_2_32, PY])
def test_known_formats_are_read(tmp_path, template):
    records = records_of(written(tmp_path, template, [100, 200], lambda s: s * 1e-4))
    assert [(r.step, r.rate, r.line) for r in records] == [(100, 0.01, 2), (200, 0.02, 3)]
    assert records[0].half_unit == pytest.approx(5e-6 if template is PY else 5e-7)


def test_the_articles_own_line_is_read(tmp_path):
    path = tmp_path / "log"
    path.write_text("Step = 1 ; ... ; Learning rate = 0.000100 ; Loss = 3.386743\n")
    assert [(r.step, r.rate) for r in records_of(str(path))] == [(1, 0.0001)]


def test_a_pattern_reads_any_other_format(tmp_path):
    path = tmp_path / "log"
    path.write_text("num_updates=100, lr=2.5e-05, x\nnum_updates=200, lr=5e-05\nnoise\n")
    records = records_of(str(path), compile_pattern(r"num_updates=(\d+), lr=([\d.e-]+)"))
    assert [(r.step, r.rate, r.half_unit) for r in records] == [
        (100, 2.5e-05, pytest.approx(5e-7)),
        (200, 5e-05, pytest.approx(5e-7)),
    ]


@pytest.mark.parametrize("text", ["(", "no groups", "(one)", "(?P<step>x)(?P<other>y)"])
def test_a_pattern_without_its_groups_is_refused(text):
    with pytest.raises(UsageError, match="log_pattern"):
        compile_pattern(text)


@pytest.mark.parametrize("content", ["", "nothing here\n", "Step = x ; Learning rate = 1\n"])
def test_a_log_without_a_rate_is_unreadable(tmp_path, content):
    path = tmp_path / "log"
    path.write_text(content)
    with pytest.raises(UnreadableError, match="none of its") as caught:
        records_of(str(path))
    assert "log_pattern" in caught.value.hint


def test_a_match_that_is_no_number_names_its_line(tmp_path):
    path = tmp_path / "log"
    path.write_text("a=1 b=2\na=1 b=two\n")
    with pytest.raises(UnreadableError, match="line 2"):
        records_of(str(path), compile_pattern(r"a=(\w+) b=(\w+)"))


def test_bytes_that_are_no_text_do_not_stop_the_reading(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"\xff\xfe\nStep = 5 ; Learning rate = 0.000100 ; \x80\n")
    assert records_of(str(path))[0].step == 5


PARAMETERS = {
    "learning_rate": st.sampled_from([0.5, 1.0, 2.0, 3.5, 6.0]),
    "model_dim": st.sampled_from([64, 256, 512, 1024]),
    "warmup_steps": st.sampled_from([400, 1000, 4000, 8000]),
    "start_decay_steps": st.sampled_from([0, 0, 500]),
    "decay_step_duration": st.sampled_from([1, 1, 3]),
    "minimum_learning_rate": st.sampled_from([0.0, 0.0, 1e-5]),
}


@given(
    st.fixed_dictionaries(PARAMETERS), st.sampled_from(["applied", "logged"]), st.sampled_from(["float64", "float32"])
)
@settings(max_examples=25, deadline=None)
def test_a_log_of_the_schedule_agrees_whatever_its_parameters(tmp_path_factory, parameters, semantics, dtype):
    schedule = spec(**parameters)
    rate = schedule.rate(semantics, dtype)
    path = written(tmp_path_factory.mktemp("log"), TF, range(100, 20_000, 100), rate)
    verdict = compare_log(records_of(path), schedule, semantics)
    assert verdict.agrees
    assert (verdict.compared, verdict.differing, verdict.first) == (199, 0, None)


def test_a_log_of_applied_rates_is_shifted_by_one(tmp_path):
    schedule = spec(warmup_steps=50)
    records = records_of(written(tmp_path, TF, range(1, 300), schedule.rate("applied")))
    verdict = compare_log(records, schedule)
    assert verdict.outcome == "shifted by one"
    assert verdict.first is not None
    assert verdict.first.record.step == 1
    assert compare_log(records, schedule, "applied").agrees
    back = records_of(written(tmp_path, TF, range(1, 300), schedule.rate("logged")))
    assert compare_log(back, schedule, "applied").outcome == "shifted by one"


def test_a_log_too_coarse_to_tell_the_shift_agrees_and_says_so(tmp_path):
    records = records_of(written(tmp_path, TF, range(20_000, 30_000, 1000), spec().rate("logged")))
    verdict = compare_log(records, spec())
    assert verdict.agrees
    assert "cannot tell" in verdict.explanation


def test_a_step_counter_that_begins_again_is_a_restarted_warmup(tmp_path):
    steps = [*range(100, 3000, 100), *range(100, 900, 100)]
    verdict = compare_log(records_of(written(tmp_path, TF, steps, spec().rate("logged"))), spec())
    assert verdict.outcome == "restarted warm-up"
    assert "Step = 2900" in verdict.explanation


def test_going_back_to_a_checkpoint_agrees(tmp_path):
    steps = [*range(100, 3000, 100), *range(2600, 4000, 100)]
    assert compare_log(records_of(written(tmp_path, TF, steps, spec().rate("logged"))), spec()).agrees


def test_a_schedule_that_begins_anew_while_steps_go_on_is_a_restarted_warmup(tmp_path):
    logged = spec().rate("logged")
    records = records_of(written(tmp_path, TF, range(100, 9000, 100), lambda s: logged(s - 5000 if s > 5000 else s)))
    verdict = compare_log(records, spec())
    assert verdict.outcome == "restarted warm-up"
    assert "step" in verdict.explanation
    assert "5000" in verdict.explanation
    assert verdict.first.record.step == 5100


def test_other_parameters_are_named(tmp_path):
    records = records_of(written(tmp_path, TF, range(100, 30_000, 100), spec(learning_rate=3).rate("logged")))
    verdict = compare_log(records, spec())
    assert verdict.outcome == "different parameters"
    assert "learning_rate=3, warmup_steps=8000" in verdict.explanation


def test_a_log_of_one_side_of_the_peak_does_not_rule_other_parameters_out(tmp_path):
    records = records_of(written(tmp_path, TF, range(100, 3000, 100), spec(learning_rate=3).rate("logged")))
    verdict = compare_log(records, spec())
    assert verdict.outcome == "different parameters"
    assert "one side of the peak only" in verdict.explanation


def test_half_a_percent_of_another_rate_differs(tmp_path):
    records = records_of(written(tmp_path, TF, range(100, 30_000, 100), spec(learning_rate=2.01).rate("logged")))
    verdict = compare_log(records, spec())
    assert verdict.outcome == "different parameters"
    assert verdict.first.expected == spec().build()(verdict.first.record.step)


def test_a_rate_that_is_nan_differs(tmp_path):
    path = tmp_path / "log"
    path.write_text("Step = 1 ; Learning rate = nan ; Loss\nStep = 2 ; Learning rate = 0.000000 ; Loss\n")
    assert not compare_log(records_of(str(path)), spec()).agrees


@given(st.fixed_dictionaries(PARAMETERS), st.sampled_from(["applied", "logged"]))
@settings(max_examples=25, deadline=None)
def test_a_fit_finds_the_parameters_within_its_bounds(tmp_path_factory, parameters, semantics):
    schedule = spec(**parameters)
    last = 5 * (parameters["start_decay_steps"] + parameters["warmup_steps"] * parameters["decay_step_duration"])
    path = written(tmp_path_factory.mktemp("log"), TF, range(50, last, 50), schedule.rate(semantics))
    fit = fit_noam(records_of(path), schedule, semantics)
    assert fit.scale_bounds[0] <= parameters["learning_rate"] <= fit.scale_bounds[1]
    assert fit.warmup_bounds[0] <= parameters["warmup_steps"] <= fit.warmup_bounds[1]
    assert fit.warmup_bounds[1] / fit.warmup_bounds[0] < 1.2


def test_a_fit_prefers_round_numbers_and_explains_every_line(tmp_path):
    fit = fit_noam(records_of(written(tmp_path, TF, range(100, 50_000, 100), spec().rate("logged"))), spec())
    assert (fit.scale, fit.warmup_steps, fit.differing) == (2, 8000, 0)


def test_a_log_of_the_warmup_alone_bounds_the_slope_alone(tmp_path):
    fit = fit_noam(records_of(written(tmp_path, TF, range(100, 5000, 100), spec().rate("logged"))), spec())
    assert (fit.warmup_steps, fit.scale) == (None, None)
    slope = 2 * 512**-0.5 * 8000**-1.5
    assert fit.slope_bounds[0] <= slope <= fit.slope_bounds[1]


def test_a_log_of_another_shape_is_not_explained(tmp_path):
    linear = ScheduleSpec.from_parameters(
        find_kind("linear"), {"learning_rate": 1e-3, "warmup_steps": 1000, "max_step": 20_000}
    )
    fit = fit_noam(records_of(written(tmp_path, TF, range(100, 20_000, 100), linear.rate("logged"))), spec())
    assert fit.differing > 0
    assert fit.first is not None


def test_a_log_at_the_floor_alone_cannot_be_fitted(tmp_path):
    records = records_of(written(tmp_path, TF, range(100, 1000, 100), lambda _s: 1e-4))
    with pytest.raises(UsageError, match="above the floor"):
        fit_noam(records, spec(minimum_learning_rate=1e-4))
