"""Weights that are stored as codes with scales of their own: which tensors belong together, by one table of names.

A weight is then a function of several tensors, ``codes * scale`` at its simplest. The mean of the weights is not what
the mean of the codes and the mean of the scales give, so neither is averaged: where codes are integers, codes and
scales must be the same in all members. Codes that are numbers themselves (float8) are averaged where their scales are
the same, which is exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ckpttool.errors import MismatchError
from ckpttool.planning.matching import Matched
from ckpttool.planning.plan import Equality, Member, PlannedTensor
from ckpttool.tensors import Checkpoint, TensorId, TensorSpec
from ckpttool.text import Message, first_names, parameter, tensor_label

__all__ = ["SIGNATURES", "Packed", "Signature", "check_complete", "compare_scales", "find_packed"]

PROBED_BYTES = 4 << 20
"""So many bytes of scales, of all members together, are read for a plan."""


@dataclass(frozen=True)
class Signature:
    """How one quantizer names the tensors of a weight, as endings after the name of the module.

    Attributes:
        method: The quantizer.
        codes: The codes.
        required: What tells it from others: the codes are such only if there is this as well.
        others: Further tensors that decode the codes, where they are there.
        in_any_dtype: Whether the codes may be stored as any type; else only integers and float8 are codes.
    """

    method: str
    codes: str
    required: str
    others: tuple[str, ...] = ()
    in_any_dtype: bool = False


_BITSANDBYTES_4 = tuple(
    f".weight.{name}"
    for name in (
        "quant_map",
        "nested_absmax",
        "nested_quant_map",
        "quant_state.bitsandbytes__nf4",
        "quant_state.bitsandbytes__fp4",
    )
)

SIGNATURES = (
    # AutoGPTQ and GPTQModel; AWQ has the same names without g_idx.
    Signature("GPTQ or AWQ", ".qweight", ".scales", (".qzeros", ".g_idx")),
    # bitsandbytes' Params4bit; the packed bytes may be stored as bfloat16 (bnb_4bit_quant_storage).
    Signature("bitsandbytes (4 bit)", ".weight", ".weight.absmax", _BITSANDBYTES_4, in_any_dtype=True),
    Signature("bitsandbytes (8 bit)", ".weight", ".SCB", (".weight_format",)),
    # gpt-oss in transformers, and as OpenAI publishes it.
    Signature("MXFP4", "_blocks", "_scales"),
    Signature("MXFP4", ".blocks", ".scales"),
    # compressed-tensors' pack-quantized and nvfp4-pack-quantized.
    Signature(
        "compressed-tensors",
        ".weight_packed",
        ".weight_scale",
        (".weight_zero_point", ".weight_shape", ".weight_g_idx", ".weight_global_scale"),
    ),
    # DeepSeek-V3 and transformers' FineGrainedFP8.
    Signature("block-scaled float8", ".weight", ".weight_scale_inv"),
    # compressed-tensors' int- and float-quantized, FBGEMM, ModelOpt, BitNet.
    Signature("a quantizer with scales", ".weight", ".weight_scale", (".weight_zero_point", ".weight_scale_2")),
    Signature("quanto", ".weight._data", ".weight._scale", (".weight._shift",)),
    Signature("EETQ", ".weight", ".weight_scales"),
    Signature("HQQ", ".W_q", ".scale", (".zero",)),
    Signature("AQLM", ".codes", ".codebooks", (".scales",)),
    Signature("VPTQ", ".indices", ".centroids", (".weight_scale", ".weight_bias", ".res_indices", ".res_centroids")),
    Signature("HIGGS", ".weight", ".scales", (".tables", ".tables2")),
    # torchao's and others' plain pair.
    Signature("a quantizer with scales", ".weight", ".scale", (".zero_point",)),
)
"""Names as these libraries write them into state dicts. The first that fits counts."""

_REQUIRED = tuple({signature.required for signature in SIGNATURES})
_SCALES = ("scale", "zero", "absmax", "codebook", "centroid", "lut", "scb")


@dataclass(frozen=True)
class Packed:
    """The tensors of packed weights.

    Attributes:
        equal: Those that must be the same in all members, with what is said where they are not.
        kept: Those that keep their element type: what decodes them counts on it.
        scales: Of `equal`, those that decode the others. They are small.
        warnings: What a user must know before the run compares them.
    """

    equal: Mapping[TensorId, Equality]
    kept: frozenset[TensorId]
    scales: tuple[TensorId, ...]
    warnings: tuple[str, ...]


def find_packed(tensors: Mapping[TensorId, TensorSpec], configurations: Mapping[str, Mapping[str, Any]]) -> Packed:
    """The packed weights among tensors.

    Args:
        tensors: Of one member, by (section, name).
        configurations: Its configurations; see `Checkpoint.configurations`. A `quantization_config` in one of them
            names the method where the table does not know the names.
    """
    groups: dict[str, tuple[list[TensorId], list[TensorId]]] = {}
    taken: set[TensorId] = set()
    candidates = [each for each in tensors if each[1].endswith(_REQUIRED)]
    for signature in SIGNATURES:
        for section, required in candidates:
            if not required.endswith(signature.required):
                continue
            module = required[: len(required) - len(signature.required)]
            code = (section, module + signature.codes)
            if code not in tensors or code in taken or not (signature.in_any_dtype or _are_codes(tensors[code])):
                continue
            further = ((section, module + ending) for ending in signature.others)
            decoding = [(section, required), *(each for each in further if each in tensors)]
            codes, scales = groups.setdefault(signature.method, ([], []))
            codes.append(code)
            scales += decoding
            taken.update((code, *decoding))
    method = _stated_method(configurations)
    if method is not None and not groups:
        codes = [each for each, spec in tensors.items() if _are_codes(spec) and len(spec.shape) > 1]
        modules = {(section, name.rpartition(".")[0]) for section, name in codes}
        scales = [
            (section, name)
            for section, name in tensors
            if (section, name.rpartition(".")[0]) in modules
            and (section, name) not in codes
            and any(part in name.rpartition(".")[2].lower() for part in _SCALES)
        ]
        if codes:
            groups[method] = (codes, scales)
    equal: dict[TensorId, Equality] = {}
    warnings = []
    for method, (codes, scales) in groups.items():
        equality = Equality(f"a part of weights packed by {method}", _hint(method, codes, scales))
        held = [each for each in codes if not tensors[each].dtype.name.startswith("float8")]
        equal.update(dict.fromkeys((*held, *scales), equality))
        if held:
            warnings.append(
                f"{len(codes):,} weights are packed by {method}, as {_example(codes, scales)}: codes and scales are "
                "not averaged; the run compares them, and they must be the same in all members"
            )
    kept = frozenset(each for codes, scales in groups.values() for each in (*codes, *scales))
    return Packed(equal, kept, tuple(each for _, scales in groups.values() for each in scales), tuple(warnings))


def check_complete(matched: Matched, members: Sequence[Checkpoint], weights: Sequence[float]) -> Packed:
    """The packed weights of the newest member, of which every member that counts has all parts.

    Raises:
        MismatchError: What decodes a weight is not in all members: one is quantised and another is not.
    """
    names = set(matched.names) - matched.alone
    packed = find_packed(matched.found[-1], members[-1].configurations)
    for checkpoint, tensors, weight in zip(members, matched.found, weights, strict=True):
        if weight == 0:
            continue
        own = packed if tensors is matched.found[-1] else find_packed(tensors, checkpoint.configurations)
        lacking = next((each for each in (*own.kept, *packed.kept) if each not in names or each not in tensors), None)
        if lacking is not None and sum(weight != 0 for weight in weights) > 1:
            label = tensor_label(lacking)
            raise MismatchError(
                f"{checkpoint.path}: {label} is a part of quantised weights, and not all checkpoints have it",
                path=checkpoint.path,
                tensor=label,
                hint="Checkpoints that are quantised and others are not averaged: average those from before the "
                "quantization.",
            )
    return packed


def compare_scales(tensors: Iterable[PlannedTensor], members: Sequence[Member], packed: Packed) -> None:
    """Compare what decodes packed weights, as far as little has to be read for it, so that a dry run refuses it too.

    The run compares all of it, and the codes.

    Raises:
        MismatchError: They differ between members.
        UnreadableError: A member cannot be read.
    """
    from ckpttool.reading.values import read_values

    scales = set(packed.scales)
    left = PROBED_BYTES
    for planned in tensors:
        if planned.id not in scales or len(planned.terms) < 2:
            continue
        left -= sum(term.tensor.nbytes for term in planned.terms)
        if left < 0:
            return
        last = planned.terms[-1]
        label = tensor_label(planned.id)
        newest = read_values(last.tensor, name=label)
        for term in planned.terms[:-1]:
            other = newest if term.tensor == last.tensor else read_values(term.tensor, name=label)
            if other.dtype != newest.dtype:
                other, base = other.astype("float64"), newest.astype("float64")
            else:
                base = newest
            if other.tobytes() != base.tobytes():
                paths = [members[each.member].checkpoint.path for each in (last, term)]
                raise planned.equality.violated(planned.id, planned.output.dtype, *paths)


def _are_codes(spec: TensorSpec) -> bool:
    return spec.dtype.kind == "integer" or spec.dtype.name.startswith("float8")


def _stated_method(configurations: Mapping[str, Mapping[str, Any]]) -> str | None:
    """What a configuration says of the weights' quantization."""
    for configuration in configurations.values():
        stated = configuration.get("quantization_config")
        if isinstance(stated, Mapping):
            return str(stated.get("quant_method", "the quantizer of quantization_config"))
    return None


def _example(codes: Sequence[TensorId], scales: Sequence[TensorId]) -> str:
    return " with ".join(tensor_label(each) for each in (codes[0], *scales[:1]))


def _hint(method: str, codes: Sequence[TensorId], scales: Sequence[TensorId]) -> str:
    return Message(
        f"{len(codes):,} weights are packed by {method} ({first_names(map(tensor_label, codes), 2)}, decoded by "
        f"{first_names(map(tensor_label, scales), 2)}). Codes and scales cannot be averaged one by one: average the "
        "checkpoints from before the quantization and quantise the average, or dequantise the members first. "
        f"{parameter('last', 1)} writes one checkpoint as it is."
    )
