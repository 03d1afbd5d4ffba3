# ruff: noqa: E501 (a table reads best with one case a line)
"""Schedules out of OpenNMT-tf's YAML files, and the traps in them."""

from __future__ import annotations

import pytest

from ckpttool.errors import UnreadableError, UnsupportedError, UsageError
from ckpttool.schedules.checks import ParameterError
from ckpttool.schedules.config import AUTO_CONFIGS, auto_config, parameter_error, read_config
from ckpttool.schedules.family import ScheduleSpec

FULL = """\
model_dir: run
params:
  optimizer: Adam
  learning_rate: 2.0
  decay_type: NoamDecay
  decay_params:
    model_dim: 768
    warmup_steps: 8000
  decay_step_duration: 2
  start_decay_steps: 10000
  minimum_learning_rate: 0.0001
train:
  max_step: 500000
  save_summary_steps: 100
"""


@pytest.fixture
def config(tmp_path):
    def write(text, model=None):
        path = tmp_path / "data.yml"
        path.write_text(text)
        return read_config(str(path), model)

    return write


def test_every_key_is_read(config):
    read = config(FULL)
    assert read.kind.name == "noam"
    assert read.parameters == {
        "learning_rate": 2.0,
        "model_dim": 768,
        "warmup_steps": 8000,
        "decay_step_duration": 2,
        "start_decay_steps": 10000,
        "minimum_learning_rate": 0.0001,
    }
    assert read.max_step == 500_000
    assert read.warnings == ()


def test_decay_params_win_over_learning_rate_with_a_warning(config):
    read = config(
        FULL.replace("model_dim: 768", "{scale: 3, model_dim: 768")
        .replace("8000\n", "8000}\n")
        .replace("768\n    warmup", "768,\n    warmup")
    )
    assert read.parameters["learning_rate"] == 3
    assert "scale wins over params: learning_rate in line 4" in read.warnings[0]


def test_without_decay_type_the_rate_is_constant_and_the_rest_is_ignored_with_warnings(config):
    read = config("params: {learning_rate: 0.001, start_decay_steps: 5, decay_params: {model_dim: 4}}")
    assert (read.kind.name, dict(read.parameters)) == ("constant", {"learning_rate": 0.001})
    assert len(read.warnings) == 2
    assert all("ignored without decay_type" in warning for warning in read.warnings)


@pytest.mark.parametrize("model", AUTO_CONFIGS)
def test_every_auto_config_is_a_whole_schedule(model):
    read = auto_config(model)
    ScheduleSpec.from_parameters(read.kind, read.parameters)


def test_the_base_transformers_auto_config_has_its_peak():
    read = auto_config("TransformerBase")
    spec = ScheduleSpec.from_parameters(read.kind, read.parameters)
    assert spec.build()(7999) == pytest.approx(9.882117688e-04, rel=1e-9)


def test_auto_config_is_the_default_of_the_file(config):
    read = config("params: {learning_rate: 6, minimum_learning_rate: 1.0e-4}", "TransformerBig")
    assert read.parameters == {
        "learning_rate": 6,
        "model_dim": 1024,
        "warmup_steps": 8000,
        "minimum_learning_rate": 1e-4,
    }


def test_decay_params_replace_those_of_auto_config_as_a_whole(config):
    read = config("params:\n  decay_params: {warmup_steps: 4000}\n", "TransformerBase")
    assert read.parameters == {"learning_rate": 2.0, "warmup_steps": 4000}
    assert (read.replaced, read.decay_params_line) == ("TransformerBase", 2)


def test_a_parameter_out_of_range_is_told_with_its_key_and_line(config):
    read = config(FULL.replace("decay_step_duration: 2", "decay_step_duration: 0"))
    with pytest.raises(ParameterError) as caught:
        ScheduleSpec.from_parameters(read.kind, read.parameters)
    error = parameter_error(read, caught.value)
    assert error.exit_code == 6
    assert "data.yml, line 9: params: decay_step_duration must be a whole number of at least 1, not 0" in str(error)
    assert "rate 0" in error.hint


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("params: [1, 2", "not YAML", None),
        ("params:\n  learning_rate: 2\n\tx: 1\n", "line 3: not YAML", None),
        ("a: b: c\n", "line 1: not YAML", None),
        ("- 1\n", "the file must hold keys and values, not a list", None),
        ("params: 5\n", "'params' must hold keys and values, not '5'", None),
        ("", "it has no section 'params'", "auto_config"),
        ("params:\n  learning_rate: 2\n  learning_rate: 6\n", "line 3: the key 'learning_rate' is in 'params' twice", "keep one"),
        ("params:\n  learning_rate: 1e-4\n", "line 2: params: learning_rate must be a number, not the text '1e-4'", "Write 0.0001"),
        ("params:\n  learning_rate: 1e-5\n", "must be a number", "Write 1.0e-05"),
        ("params:\n  learning_rate: two\n", "must be a number, not the text 'two'", None),
        ("params:\n  learning_rate: true\n", "must be a number, not 'true'", None),
        ("params:\n  learning_rate: [1]\n", "must be one value, not a list", None),
        ("params:\n  learning_rate: 2\n  decay_type: NoamDeacy\n", "line 3: there is no decay_type 'NoamDeacy'", "Did you mean 'NoamDecay'"),
        ("params:\n  learning_rate: 2\n  decay_type: noamdecay\n", "there is no decay_type", "case matters"),
        ("params:\n  decay_type: noam_decay_v2\n", "OpenNMT-tf 1", "model_dim"),
        ("params:\n  decay_type: NoamDecay\n  decay_params: {warmup_step: 4}\n", "NoamDecay has no parameter 'warmup_step'", "Did you mean 'warmup_steps'"),
        ("params:\n  decay_type: NoamDecay\n  decay_params: 4\n", "'decay_params' must hold keys and values", None),
        ("params: {learning_rate: 1}\ntrain:\n  max_step: 0\n", "line 3: train: max_step", None),
        ("params: {learning_rate: 1}\nparams: {learning_rate: 2}\n", "line 2: the key 'params' is in the file twice", None),
    ],
)  # fmt: skip
def test_what_cannot_be_is_an_error_with_its_line(config, text, says, hint):
    with pytest.raises(UnreadableError) as caught:
        config(text)
    assert says in str(caught.value)
    assert "data.yml" in str(caught.value)
    assert "\n" not in str(caught.value)
    if hint:
        assert hint in caught.value.hint


def test_tensorflows_own_schedules_are_told_apart_from_typing_errors(config):
    with pytest.raises(UnsupportedError, match="TensorFlow's own"):
        config("params: {learning_rate: 1, decay_type: ExponentialDecay}")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("warmup_steps: 8000", "belongs in decay_params"),
        ("start_decay_step: 5", "Did you mean 'start_decay_steps'"),
        ("decay_rate: 0.5", "OpenNMT-tf 1"),
    ],
)
def test_a_key_that_opennmt_would_ignore_is_pointed_out(config, line, says):
    read = config(f"params:\n  learning_rate: 1\n  {line}\n")
    assert "line 3" in read.warnings[0]
    assert says in read.warnings[0]


@pytest.mark.parametrize("key", ["optimizer", "average_loss_in_time", "moving_average_decay", "beam_width", "dropout"])
def test_other_keys_are_not_pointed_out(config, key):
    assert config(f"params:\n  learning_rate: 1\n  {key}: 1\n").warnings == ()


def test_merged_keys_and_tags_elsewhere_are_read(config):
    read = config("base: &b {learning_rate: 2.0}\nother: !!python/none x\nparams:\n  <<: *b\n  optimizer: Adam\n")
    assert read.parameters == {"learning_rate": 2.0}


def test_nothing_in_the_file_is_executed(config, tmp_path):
    with pytest.raises(UnreadableError, match="line 2"):
        config(f"params:\n  learning_rate: !!python/object/apply:os.mkdir ['{tmp_path}/pwned']\n")
    assert not (tmp_path / "pwned").exists()


def test_an_unknown_model_gets_a_suggestion():
    with pytest.raises(UsageError) as caught:
        auto_config("TransformerBsae")
    assert "Did you mean 'TransformerBase'?" in caught.value.hint


def test_a_binary_file_is_not_yaml(tmp_path):
    path = tmp_path / "x.yml"
    path.write_bytes(b"\x80\x02\x00")
    with pytest.raises(UnreadableError, match="not YAML"):
        read_config(str(path))
