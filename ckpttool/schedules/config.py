"""The learning-rate schedule that an OpenNMT-tf configuration asks for.

OpenNMT-tf checks almost nothing of it: a duration of 0 trains at rate 0, a misspelled key is ignored. Whatever would
not do what it says is an error here, with its line, or a warning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import yaml

from ckpttool.errors import UnreadableError, UnsupportedError, UsageError
from ckpttool.schedules.checks import MOST_STEPS, ParameterError
from ckpttool.schedules.family import WRAPPER
from ckpttool.schedules.kinds import KINDS, Kind, Value, find_kind, suggest
from ckpttool.text import parameter

__all__ = ["AUTO_CONFIGS", "ConfigSchedule", "auto_config", "missing_error", "parameter_error", "read_config"]


@dataclass(frozen=True)
class ConfigSchedule:
    """What a configuration says about the learning rate.

    Attributes:
        kind: The schedule.
        parameters: By public name (`ScheduleSpec.from_parameters`); what the configuration does not say is not in it.
        lines: Parameter -> (key as it is written, line).
        max_step: ``train: max_step``, None if it is not there.
        warnings: What will not do what it seems to.
        path: The file; None for `auto_config`.
        decay_params_line: The line of ``decay_params``, None if there is none.
        replaced: The model whose parameters from ``--auto_config`` that ``decay_params`` replaced.
    """

    kind: Kind
    parameters: Mapping[str, Value]
    lines: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    max_step: int | None = None
    warnings: tuple[str, ...] = ()
    path: str | None = None
    decay_params_line: int | None = None
    replaced: str | None = None


def _transformer(model_dim: int) -> dict[str, Value]:
    return {"learning_rate": 2.0, "decay_type": "NoamDecay", "model_dim": model_dim, "warmup_steps": 8000}


def _scaling_nmt(learning_rate: float) -> dict[str, Value]:
    warmup = {"warmup_steps": 4000, "initial_learning_rate": 1e-7}
    return {"learning_rate": learning_rate, "decay_type": "InvSqrtDecay", **warmup}


AUTO_CONFIGS: Mapping[str, Mapping[str, Value]] = MappingProxyType(
    {
        "Transformer": _transformer(512),
        "TransformerBase": _transformer(512),
        "TransformerRelative": _transformer(512),
        "TransformerBaseRelative": _transformer(512),
        "TransformerBaseSharedEmbeddings": _transformer(512),
        "TransformerBig": _transformer(1024),
        "TransformerBigRelative": _transformer(1024),
        "TransformerBigSharedEmbeddings": _transformer(1024),
        "TransformerTiny": _transformer(64),
        "ScalingNmtEnDe": _scaling_nmt(0.001),
        "ScalingNmtEnFr": _scaling_nmt(0.0007),
        "GPT2Small": {
            "learning_rate": 2.5e-4,
            "decay_type": "CosineAnnealing",
            "max_step": 1_000_000,
            "warmup_steps": 2000,
        },
        "LuongAttention": {"learning_rate": 0.0002},
        "NMTSmallV1": {"learning_rate": 0.0002},
        "NMTMediumV1": {"learning_rate": 0.0002},
        "NMTBigV1": {"learning_rate": 0.0002},
        "LstmCnnCrfTagger": {"learning_rate": 0.001},
        "ListenAttendSpell": {"learning_rate": 0.2},
    }
)
"""What ``--auto_config`` gives each model of OpenNMT-tf's catalog."""

_LONGEST = 1 << 18  # bytes; PyYAML takes a second for so many
_MOST_MERGED = 10_000
_MOST_SHOWN = 40
_KERAS = (
    "CosineDecay",
    "CosineDecayRestarts",
    "ExponentialDecay",
    "InverseTimeDecay",
    "PiecewiseConstantDecay",
    "PolynomialDecay",
)
_KEYS = ("learning_rate", "decay_type", "decay_params", *WRAPPER)
_LEGACY = {"decay_rate": "decay_params: model_dim", "decay_steps": "decay_params: warmup_steps"}


def auto_config(model: str) -> ConfigSchedule:
    """The schedule that OpenNMT-tf's ``--auto_config`` gives a model.

    Raises:
        UsageError: If the catalog has no such model.
    """
    values = dict(_auto_values(model))
    kind = find_kind(str(values.pop("decay_type", "constant")))
    return ConfigSchedule(kind, values)


def _auto_values(model: str) -> Mapping[str, Value]:
    try:
        return AUTO_CONFIGS[model]
    except KeyError:
        raise UsageError(
            f"{parameter('auto_config')}: there is no model {model!r}",
            hint=f"{suggest(model, AUTO_CONFIGS) or ''} The models are {', '.join(AUTO_CONFIGS)}.".strip(),
        ) from None


def read_config(path: str, model: str | None = None) -> ConfigSchedule:
    """Read the schedule out of a YAML file in OpenNMT-tf's format.

    Args:
        path: The file.
        model: A model whose ``--auto_config`` is the default of what the file does not say, as with
            ``onmt-main --auto_config``. It is merged key by key, except that ``decay_params`` is replaced as a whole,
            as OpenNMT-tf does.

    Raises:
        UnreadableError: If the file is not YAML, or says something that cannot be; with its line.
        UnsupportedError: If it asks for one of TensorFlow's own schedules.
        UsageError: If there is no such model.
    """
    return _Reader(path, model).read()


class _Reader:
    """One file. The state is the file and what was found in it so far."""

    def __init__(self, path: str, model: str | None) -> None:
        self.path = path
        self.auto = dict(_auto_values(model)) if model else {}
        self.model = model
        self.warnings: list[str] = []
        self.loader: yaml.SafeLoader | None = None

    def read(self) -> ConfigSchedule:
        root = self._sections()
        params = self._section(root, "params")
        train = self._section(root, "train")
        if not params and not self.auto:
            raise self._error(
                1,
                "there is no learning rate in it: it has no section 'params'",
                "The file needs params: learning_rate, decay_type and decay_params; "
                f"or add {parameter('auto_config')} and the name of a model.",
            )
        self._point_out_lost_keys(params)
        kind = self._kind(params)
        parameters, lines = self._parameters(params, kind)
        if kind.name == "constant":
            for name in [name for name in WRAPPER if name in parameters]:
                key, line = lines[name]
                del parameters[name]
                self._warn(line, f"{key} is ignored without decay_type: the rate is constant")
        max_step = None
        if "max_step" in train:
            node, line = train["max_step"]
            value = self._value(node, "train: max_step", line)
            if value is not None and not (isinstance(value, int) and 1 <= value <= MOST_STEPS):
                raise self._error(
                    line, f"train: max_step must be a whole number from 1 to {MOST_STEPS}, not {_shown(node.value)}"
                )
            max_step = value
        inner = params["decay_params"][1] if "decay_params" in params else None
        replaced = self.model if inner is not None and kind.required else None
        return ConfigSchedule(kind, parameters, lines, max_step, tuple(self.warnings), self.path, inner, replaced)

    def _sections(self) -> dict[str, tuple[yaml.Node, int]]:
        try:
            with open(self.path, "rb") as file:
                data = file.read(_LONGEST + 1)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UnreadableError(f"{self.path}: {reason}", path=self.path) from error
        if len(data) > _LONGEST:
            raise UnreadableError(
                f"{self.path}: longer than {_LONGEST:,} bytes, as no configuration is", path=self.path
            )
        try:
            self.loader = yaml.SafeLoader(data)
            try:
                node = self.loader.get_single_node()
            finally:
                self.loader.dispose()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise self._error(mark.line + 1 if mark else 1, f"not YAML: {error.problem or error.context}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UnreadableError(f"{self.path}: not YAML: {error}".replace("\n", " "), path=self.path) from error
        except RecursionError as error:
            raise UnreadableError(
                f"{self.path}: not YAML that can be read: nested too deeply", path=self.path
            ) from error
        if node is None:
            return {}
        return self._entries(node, "the file")

    def _entries(self, node: yaml.Node, what: str) -> dict[str, tuple[yaml.Node, int]]:
        """Key -> (value, line of the key) of a mapping; a key that is there twice is an error."""
        line = node.start_mark.line + 1
        if not isinstance(node, yaml.MappingNode):
            raise self._error(line, f"{what} must hold keys and values, not {_describe(node)}")
        seen: dict[str, int] = {}
        for key, _value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._error(key.start_mark.line + 1, f"{what} has a key that is {_describe(key)}")
            name = str(key.value)
            if name in seen and name != "<<":
                raise self._error(
                    key.start_mark.line + 1,
                    f"the key {_shown(name)} is in {what} twice, for the first time in line {seen[name]}",
                    "YAML takes the last one without an error: keep one of them.",
                )
            seen[name] = key.start_mark.line + 1
        if "<<" in seen and self.loader is not None:
            try:
                if _merged_size(node, {}) > _MOST_MERGED:
                    raise self._error(seen["<<"], f"the merge '<<' makes more than {_MOST_MERGED:,} keys")
                self.loader.flatten_mapping(node)
            except (yaml.YAMLError, RecursionError) as error:
                raise self._error(seen["<<"], "the merge '<<' cannot be resolved") from error
        return {
            str(key.value): (value, key.start_mark.line + 1)
            for key, value in node.value
            if isinstance(key, yaml.ScalarNode)
        }

    def _section(self, root: dict[str, tuple[yaml.Node, int]], name: str) -> dict[str, tuple[yaml.Node, int]]:
        if name not in root:
            return {}
        node = root[name][0]
        if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null":
            return {}
        return self._entries(node, f"'{name}'")

    def _point_out_lost_keys(self, params: dict[str, tuple[yaml.Node, int]]) -> None:
        inner = {name for kind in KINDS for name in (*kind.required, *kind.optional)} - {"max_step"}
        for name, (_node, line) in params.items():
            if name in _KEYS or name in _LEGACY:
                continue
            near = suggest(name, _KEYS)
            if name in inner:
                self._warn(line, f"params: {name} is ignored there; it belongs in decay_params")
            elif near and name not in ("moving_average_decay", "weight_decay"):
                self._warn(line, f"params: {name} is not a key that OpenNMT-tf reads. {near}")

    def _kind(self, params: dict[str, tuple[yaml.Node, int]]) -> Kind:
        if "decay_type" not in params:
            return find_kind(str(self.auto.get("decay_type", "constant")))
        node, line = params["decay_type"]
        name = self._value(node, "params: decay_type", line)
        if name is None:
            return find_kind("constant")
        text = str(name)
        classes = {kind.aliases[0]: kind for kind in KINDS if kind.aliases and kind.aliases[0][0].isupper()}
        if text in classes:
            return classes[text]
        if text in _KERAS:
            raise UnsupportedError(
                f"{self.path}, line {line}: {text} is one of TensorFlow's own schedules, which ckpttool does not have",
                hint=f"It has {', '.join(classes)}, and more as {parameter('schedule')}.",
                path=self.path,
            )
        if text.startswith("noam_decay"):
            raise self._error(
                line,
                f"decay_type {text} is of OpenNMT-tf 1; version 2 calls it NoamDecay",
                "decay_rate became decay_params: model_dim, and decay_steps became decay_params: warmup_steps.",
            )
        raise self._error(
            line,
            f"there is no decay_type {text!r}",
            f"{suggest(text, classes) or ''} OpenNMT-tf has {', '.join(classes)}; case matters.".strip(),
        )

    def _parameters(
        self, params: dict[str, tuple[yaml.Node, int]], kind: Kind
    ) -> tuple[dict[str, Value], dict[str, tuple[str, int]]]:
        parameters: dict[str, Value] = {}
        lines: dict[str, tuple[str, int]] = {}
        if "learning_rate" in self.auto:
            parameters["learning_rate"] = self.auto["learning_rate"]
        for name in ("learning_rate", *WRAPPER):
            if name in params:
                node, line = params[name]
                value = self._value(node, f"params: {name}", line)
                if value is not None:
                    parameters[name] = value
                    lines[name] = (f"params: {name}", line)
        for old, new in _LEGACY.items():
            if old in params:
                self._warn(params[old][1], f"params: {old} is of OpenNMT-tf 1 and ignored; version 2 reads {new}")
        replaced = "decay_params" in params
        same_kind = kind is find_kind(str(self.auto.get("decay_type", "constant")))
        if not replaced and same_kind:
            parameters.update({k: v for k, v in self.auto.items() if k not in ("learning_rate", "decay_type")})
        if replaced:
            self._decay_params(*params["decay_params"], kind, parameters, lines)
        return parameters, lines

    def _decay_params(
        self,
        node: yaml.Node,
        line: int,
        kind: Kind,
        parameters: dict[str, Value],
        lines: dict[str, tuple[str, int]],
    ) -> None:
        entries = self._section({"decay_params": (node, line)}, "decay_params")
        if kind.name == "constant":
            self._warn(line, "params: decay_params is ignored without decay_type: the rate is constant")
            return
        for written, (value_node, value_line) in entries.items():
            name = kind.public(written)
            key = f"decay_params: {written}"
            known = [kind.rate, *kind.required, *kind.optional]
            if written not in known:
                raise self._error(
                    value_line,
                    f"{kind.aliases[0]} has no parameter {written!r}",
                    f"{suggest(written, known) or ''} It has {', '.join(known)}.".strip(),
                )
            value = self._value(value_node, key, value_line)
            if name == "learning_rate" and "learning_rate" in lines:
                self._warn(
                    value_line, f"{key} wins over params: learning_rate in line {lines['learning_rate'][1]}, as there"
                )
            if value is not None:
                parameters[name] = value
                lines[name] = (key, value_line)

    def _value(self, node: yaml.Node, key: str, line: int) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            raise self._error(line, f"{key} must be one value, not {_describe(node)}")
        try:
            value = yaml.SafeLoader("").construct_object(node)
        except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, ArithmeticError) as error:
            # PyYAML's constructors of tagged values fail in all these ways: !!bool x, !!int "", !!timestamp x.
            raise self._error(line, f"{key} has a value that YAML cannot read: {_shown(node.value)}") from error
        if isinstance(value, str) and not key.endswith("decay_type"):
            hint = None
            with suppress(ValueError):
                hint = f"To YAML {node.value[:40]} is text. Write {_yaml_float(float(value))}, without quotes."
            raise self._error(line, f"{key} must be a number, not the text {_shown(value)}", hint)
        if isinstance(value, bool) or not isinstance(value, (int, float, str, type(None))):
            raise self._error(line, f"{key} must be a number, not {_shown(node.value)}")
        return value

    def _warn(self, line: int, text: str) -> None:
        self.warnings.append(f"{self.path}, line {line}: {text}")

    def _error(self, line: int, text: str, hint: str | None = None) -> UnreadableError:
        return UnreadableError(f"{self.path}, line {line}: {text}", hint=hint, path=self.path)


def _yaml_float(number: float) -> str:
    """A number as YAML 1.1 reads it back: 1e-05 has no point and would be text again."""
    mantissa, e, exponent = repr(number).partition("e")
    return mantissa + ("" if "." in mantissa else ".0") + e + exponent


def _describe(node: yaml.Node) -> str:
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return "a mapping" if isinstance(node, yaml.MappingNode) else _shown(node.value)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 3]}..."


def _merged_size(node: yaml.Node, known: dict[int, int]) -> int:
    """How many entries the merges of a mapping make, at most: nested ones may double with each level."""
    if id(node) not in known:
        known[id(node)] = _MOST_MERGED  # what a merge of itself counts for
        if isinstance(node, yaml.SequenceNode):
            size = sum(_merged_size(each, known) for each in node.value)
        elif isinstance(node, yaml.MappingNode):
            merged = [value for key, value in node.value if key.tag == "tag:yaml.org,2002:merge"]
            size = len(node.value) + sum(_merged_size(value, known) for value in merged)
        else:
            size = 1
        known[id(node)] = min(size, _MOST_MERGED + 1)
    return known[id(node)]


def missing_error(config: ConfigSchedule, missing: Sequence[str]) -> UnreadableError:
    """That neither the configuration nor anything else says what the schedule needs."""
    where = f"{config.path}, line {config.decay_params_line}: decay_params" if config.decay_params_line else config.path
    if "learning_rate" in missing:
        where = config.path
    hint = f"Write it there, or add {' and '.join(map(parameter, missing))}."
    if config.replaced and any(name in AUTO_CONFIGS[config.replaced] for name in missing):
        hint = f"decay_params replaces what --auto_config gives {config.replaced} as a whole. {hint}"
    return UnreadableError(f"{where} has no {' and no '.join(missing)}", hint=hint, path=config.path)


def parameter_error(config: ConfigSchedule, error: ParameterError) -> UnreadableError:
    """A parameter's error, told with the key and the line it comes from."""
    hint = error.hint
    if error.parameter == "decay_step_duration":
        hint = "OpenNMT-tf would train at rate 0 or NaN with it."
    if error.parameter in config.lines:
        key, line = config.lines[error.parameter]
        return UnreadableError(f"{config.path}, line {line}: {key} {error.reason}", hint=hint, path=config.path)
    return UnreadableError(f"{config.path}: {parameter(error.parameter)} {error.reason}", hint=hint, path=config.path)
