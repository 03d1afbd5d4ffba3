"""The Noam schedule elsewhere: which options give the same curve in other frameworks, and what differs.

Two families exist. In one, update k has ``n = k`` in the formula (the paper, OpenNMT-tf); in the other ``n = k - 1``,
one update behind. Those that lag treat the first update in three ways: rate 0, the rate of the second update, or
whatever the optimizer was built with. After that they differ from OpenNMT-tf by 1/k in the warm-up and 1/(2k) in the
decay.

Each entry was read in the framework's source; frameworks change, so that what is printed is a start to check from.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ckpttool.errors import UsageError
from ckpttool.schedules.checks import Schedule
from ckpttool.schedules.kinds import suggest
from ckpttool.schedules.rates import noam
from ckpttool.text import parameter

__all__ = ["PEERS", "Noam", "Peer", "find_peer"]


@dataclass(frozen=True)
class Noam:
    """The parameters of OpenNMT-tf's NoamDecay."""

    scale: float
    model_dim: int
    warmup_steps: int

    @property
    def peak(self) -> float:
        """The highest rate; the warm-up must not be 0."""
        return self.scale / math.sqrt(self.model_dim * self.warmup_steps)


Rate = Callable[[Noam], Schedule]
"""From the parameters to a function of the update's number k (from 1): the rate that it is applied with."""


@dataclass(frozen=True)
class Peer:
    """A framework's way to the same curve.

    Attributes:
        name: The short name that `find_peer` takes.
        title: Framework and scheduler.
        options: What to set, one line each.
        rate: The rate applied at update k with those options; None if it does not have this curve.
        first_update: What its first updates have.
        remarks: What else differs.
        aliases: Other names.
    """

    name: str
    title: str
    options: Callable[[Noam], tuple[str, ...]]
    rate: Rate | None
    first_update: str
    remarks: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


def find_peer(name: str) -> Peer:
    """The framework of this name.

    Raises:
        UsageError: If it is not known.
    """
    for peer in PEERS:
        if name.lower() in (peer.name, *peer.aliases):
            return peer
    near = suggest(name, [each for peer in PEERS for each in (peer.name, *peer.aliases)])
    raise UsageError(
        f"{parameter('framework')}: no framework {name!r} is known",
        hint=f"{near + ' ' if near else ''}Known are {', '.join(peer.name for peer in PEERS)}; "
        "'all' shows them side by side.",
    )


def _same(p: Noam) -> Schedule:
    schedule = noam(p.scale, p.model_dim, p.warmup_steps)
    return lambda update: schedule(update - 1)


def _behind_from_zero(p: Noam) -> Schedule:
    schedule = noam(p.scale, p.model_dim, p.warmup_steps)
    return lambda update: schedule(update - 2) if update > 1 else 0.0


def _behind_twice_first(p: Noam) -> Schedule:
    schedule = noam(p.scale, p.model_dim, p.warmup_steps)
    return lambda update: schedule(max(update - 2, 0))


def _behind_unknown_first(p: Noam) -> Schedule:
    schedule = noam(p.scale, p.model_dim, p.warmup_steps)
    return lambda update: schedule(update - 2) if update > 1 else math.nan


_AS_OPENNMT = "update 1 has the same rate as in OpenNMT-tf (n = 1)"
_FROM_ZERO = "update 1 has rate 0; from there on it is one update behind (n = k - 1)"
_TWICE = "updates 1 and 2 both have n = 1; from there on it is one update behind (n = k - 1)"

PEERS: tuple[Peer, ...] = (
    Peer(
        "opennmt-tf",
        "OpenNMT-tf, NoamDecay",
        lambda p: (
            f"learning_rate: {p.scale!r}",
            "decay_type: NoamDecay",
            f"decay_params: {{model_dim: {p.model_dim}, warmup_steps: {p.warmup_steps}}}",
        ),
        _same,
        _AS_OPENNMT,
        ('its log line "Step = k" shows the rate of update k + 1',),
        ("opennmt",),
    ),
    Peer(
        "opennmt-py",
        "OpenNMT-py, noam",
        lambda p: (
            "-decay_method noam",
            f"-learning_rate {p.scale!r}",
            f"-warmup_steps {p.warmup_steps}",
            f"-hidden_size {p.model_dim}",
        ),
        _same,
        _AS_OPENNMT,
        (
            "the option was called -rnn_size before 3.0",
            "without -decay_method noam, -learning_rate is the rate itself",
            "noamwd also multiplies by learning_rate_decay every decay_steps, for the first time at start_decay_steps",
            'its log line "lr:" shows the rate of the next update, with 5 decimals',
        ),
        ("onmt-py",),
    ),
    Peer(
        "eole",
        "Eole, noam",
        lambda p: (
            "decay_method: noam",
            f"learning_rate: {p.scale!r}",
            f"warmup_steps: {p.warmup_steps}",
            f"hidden_size: {p.model_dim}",
        ),
        _same,
        _AS_OPENNMT,
        ('its log line "Step k; ... lr:" shows the rate of update k, with 2 decimals and an exponent',),
    ),
    Peer(
        "t2t",
        "Tensor2Tensor, factored schedule (transformer_base today)",
        lambda p: (
            "learning_rate_schedule=constant*linear_warmup*rsqrt_decay*rsqrt_hidden_size",
            f"learning_rate_constant={p.scale!r}",
            f"learning_rate_warmup_steps={p.warmup_steps}",
            f"hidden_size={p.model_dim}",
        ),
        _behind_from_zero,
        _FROM_ZERO,
        ("its source calls it equivalent to the legacy schedule; it is one update behind it",),
        ("tensor2tensor",),
    ),
    Peer(
        "t2t-legacy",
        "Tensor2Tensor, learning_rate_decay_scheme=noam",
        lambda p: (
            "learning_rate_decay_scheme=noam",
            f"learning_rate={p.scale / 10!r}",
            f"learning_rate_warmup_steps={p.warmup_steps}",
            f"hidden_size={p.model_dim}",
        ),
        _same,
        _AS_OPENNMT,
        ("learning_rate is a tenth of the scale: it is multiplied by 5000 and, for Adam, by 0.002",),
    ),
    Peer(
        "fairseq",
        "fairseq, inverse_sqrt",
        lambda p: ("--lr-scheduler inverse_sqrt", f"--lr {p.peak!r}", f"--warmup-updates {p.warmup_steps}"),
        _behind_from_zero,
        _FROM_ZERO,
        ("--lr is the peak", "--warmup-init-lr above 0 lifts the start of the warm-up"),
    ),
    Peer(
        "hf",
        "transformers, get_inverse_sqrt_schedule",
        lambda p: (
            f"optimizer lr={p.peak!r}",
            f"get_inverse_sqrt_schedule(optimizer, num_warmup_steps={p.warmup_steps}, timescale={p.warmup_steps})",
        ),
        _behind_from_zero,
        _FROM_ZERO,
        ("the optimizer's lr is the peak", "a timescale above the warm-up decays more slowly"),
        ("huggingface", "transformers"),
    ),
    Peer(
        "marian",
        "Marian",
        lambda p: (
            f"--learn-rate {p.peak!r}",
            f"--lr-warmup {p.warmup_steps}",
            f"--lr-decay-inv-sqrt {p.warmup_steps}",
        ),
        _behind_from_zero,
        _FROM_ZERO,
        (
            "--learn-rate is the peak",
            "the two factors multiply: if --lr-decay-inv-sqrt is below --lr-warmup, the peak is never reached",
        ),
    ),
    Peer(
        "sockeye",
        "Sockeye, inv-sqrt-decay",
        lambda p: (
            "--learning-rate-scheduler-type inv-sqrt-decay",
            f"--initial-learning-rate {p.scale / math.sqrt(p.model_dim)!r}",
            f"--learning-rate-warmup {p.warmup_steps}",
        ),
        _same,
        _AS_OPENNMT,
        ("the initial learning rate is scale / sqrt(model_dim), not the peak",),
    ),
    Peer(
        "espnet",
        "ESPnet2, WarmupLR",
        lambda p: (
            f"optim_conf: {{lr: {p.peak!r}}}",
            "scheduler: warmuplr",
            f"scheduler_conf: {{warmup_steps: {p.warmup_steps}}}",
        ),
        _same,
        _AS_OPENNMT,
        ("lr is the peak", "its NoamLR is the same curve, deprecated"),
        ("espnet2",),
    ),
    Peer(
        "wenet",
        "WeNet, WarmupLR",
        lambda p: (
            f"optim_conf: {{lr: {p.peak!r}}}",
            "scheduler: warmuplr",
            f"scheduler_conf: {{warmup_steps: {p.warmup_steps}}}",
        ),
        _behind_twice_first,
        _TWICE,
        ("lr is the peak",),
    ),
    Peer(
        "nemo",
        "NeMo, NoamAnnealing",
        lambda p: (
            f"lr: {p.scale!r}",
            f"sched: {{name: NoamAnnealing, d_model: {p.model_dim}, warmup_steps: {p.warmup_steps}, min_lr: 0.0}}",
        ),
        _behind_twice_first,
        _TWICE,
        (
            "min_lr holds only after the warm-up, minimum_learning_rate of OpenNMT-tf for the whole curve",
            "NoamHoldAnnealing takes the peak as lr and warms up with (step + 1) / (warmup_steps + 1)",
        ),
    ),
    Peer(
        "allennlp",
        "AllenNLP, NoamLR",
        lambda p: (
            'type: "noam"',
            f"model_size: {p.model_dim}",
            f"warmup_steps: {p.warmup_steps}",
            f"factor: {p.scale!r}",
        ),
        _same,
        _AS_OPENNMT,
        ("the trainer steps it before the optimizer",),
    ),
    Peer(
        "paddle",
        "PaddlePaddle, NoamDecay",
        lambda p: (
            f"NoamDecay(d_model={p.model_dim}, warmup_steps={p.warmup_steps}, learning_rate={p.scale!r})",
            "scheduler.step() after every batch",
        ),
        _behind_from_zero,
        _FROM_ZERO,
        ("the training loop has to step it",),
        ("paddlepaddle",),
    ),
    Peer(
        "speechbrain",
        "SpeechBrain, NoamScheduler",
        lambda p: (
            "optimizer lr: 0",
            f"NoamScheduler: {{lr_initial: {p.scale!r}, n_warmup_steps: {p.warmup_steps}, model_size: {p.model_dim}}}",
        ),
        _behind_from_zero,
        "update 1 has the optimizer's own lr, 0 here; from there on it is one update behind (n = k - 1)",
        (
            "most recipes step it after the optimizer: an optimizer built with another lr starts with that rate",
            "without model_size, lr_initial is the peak",
        ),
    ),
    Peer(
        "joeynmt",
        "Joey NMT, noam",
        lambda p: (
            "scheduling: noam",
            f"learning_rate_factor: {p.scale!r}",
            f"learning_rate_warmup: {p.warmup_steps}",
            f"hidden_size: {p.model_dim}",
        ),
        _behind_unknown_first,
        "update 1 has the optimizer's own learning_rate; from there on it is one update behind (n = k - 1)",
        ("set learning_rate to something small: its default can be several times the peak",),
        ("joey",),
    ),
    Peer(
        "annotated",
        "The Annotated Transformer, rate() in LambdaLR",
        lambda p: (
            "optimizer lr=1.0",
            f"LambdaLR(optimizer, lambda step: rate(step, {p.model_dim}, {p.scale!r}, {p.warmup_steps}))",
        ),
        _behind_twice_first,
        _TWICE,
        aliases=("annotated-transformer",),
    ),
    Peer(
        "lrsched",
        "lrsched, inverse_sqrt",
        lambda p: (f"inverse_sqrt with base {p.peak!r} and warmup {p.warmup_steps}, step = updates done",),
        _behind_from_zero,
        _FROM_ZERO,
        ("the base is the peak",),
    ),
    Peer(
        "torchtitan",
        "torchtitan",
        lambda _p: (),
        None,
        "update 1 has peak / warmup_steps, as in OpenNMT-tf",
        ("it has no inverse square root: the nearest is warm-up, stable, decay (the schedule wsd)",),
    ),
    Peer(
        "timm",
        "timm",
        lambda _p: (),
        None,
        "update 1 has warmup_lr_init",
        ("it has no inverse square root: its schedulers are cosine, tanh, step, plateau and polynomial",),
    ),
)
