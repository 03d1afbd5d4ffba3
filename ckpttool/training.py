"""The moving average of the weights, in a training loop.

    average = MovingAverage(model, decay=0.9999)
    for step, batch in enumerate(batches, start=1):
        ...
        optimizer.step()
        average.update(step)
        if step % 1000 == 0:
            with average.shadow_weights():
                evaluate(model)
            torch.save({"model": model.state_dict(), "moving_average": average.state_dict(), "step": step}, path)

Needs PyTorch: ``pip install 'ckpttool[torch]'``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from ckpttool.coefficients.profiles import ConstantDecay, WarmupDecay
from ckpttool.errors import MismatchError, UsageError

try:
    import torch
    from torch.nn.parallel import DataParallel, DistributedDataParallel
    from torch.optim.swa_utils import get_ema_multi_avg_fn
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ImportError(
        "ckpttool.training works inside a PyTorch training loop, and PyTorch is not installed. "
        "Install it with: pip install 'ckpttool[torch]'",
        name="torch",
    ) from None

__all__ = ["FORMAT", "MovingAverage"]

FORMAT = "ckpttool.MovingAverage"
"""The value under ``"format"`` by which a stored moving average is recognised."""

_VERSION = 1

_CONVERTED_AT_ONCE = 8 * 2**20
"""Bytes of weights held a second time during an update, in the shadow's type or on its device: what a cache holds."""


class MovingAverage:
    """The moving average of a model's weights: the shadow.

    After each optimizer step, with decay = min(decay, (1+step)/(10+step)), each weight's shadow becomes
    ``shadow - (shadow - weight)·(1 - decay)``; at the first update it is the weight itself. This is the rule of
    OpenNMT-tf and of TensorFlow's ExponentialMovingAverage with `num_updates`; see
    `ckpttool.coefficients.profiles.WarmupDecay` for what it averages over. Without warm-up the decay is the same at
    every step.

    * **Half precision.** The shadow of float16, bfloat16 and float8 weights is kept in float32: at a decay of 0.9999
      one update changes less than these types can resolve, and the shadow would never move.
    * **Buffers** are not in the shadow unless ``buffers="average"``: a model under `shadow_weights` has the buffers it
      had in training, the newest ones, as with torch's AveragedModel. Averaging takes in the floating-point
      buffers that a state dict has (the statistics of BatchNorm); integer buffers are always the newest.
    * **Tied weights** are one weight and have one shadow, under their first name.
    * **Frozen parameters** are their own average and take no memory. One that is unfrozen joins with its value at the
      next update.
    * **Wrappers.** DistributedDataParallel, DataParallel and a compiled model are looked through: names are those of
      the model inside, the same with and without the wrapper. Parameters that are sharded over processes (FSDP,
      DTensor) have not been tried.

    Args:
        model: The model in training. It is not copied, and its parameters are looked up anew at each update.
        decay: What the average keeps of itself at each step, between 0 and 1: 0.9999 is usual.
        warmup: Whether the decay grows towards `decay` as above.
        buffers: ``"newest"`` or ``"average"``.
        device: Where the shadow is kept; None: on the device of each weight.

    Raises:
        UsageError: If the decay is out of range, or `buffers` is neither of its words.

    Warns:
        UserWarning: If the decay is below 0.9, which averages over less than ten steps: some libraries call
            1 - decay the decay.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> average = MovingAverage(model)
        >>> for step in (1, 2, 3):
        ...     with torch.no_grad():
        ...         _ = model.weight.fill_(step)
        ...     average.update(step)
        >>> with average.shadow_weights():
        ...     [round(x, 4) for x in model.weight[0].tolist()]
        [2.6154, 2.6154]
        >>> model.weight[0].tolist()
        [3.0, 3.0]
    """

    def __init__(
        self,
        model: torch.nn.Module,
        decay: float = 0.9999,
        *,
        warmup: bool = True,
        buffers: Literal["newest", "average"] = "newest",
        device: torch.device | str | None = None,
    ) -> None:
        if buffers not in ("newest", "average"):
            raise UsageError(f"buffers cannot be {buffers!r}", hint="newest or average")
        self.decay = decay
        """What the average keeps at each step; may be changed between updates."""
        self.warmup = warmup
        self.num_updates = 0
        """How many updates were made."""
        self.step = 0
        """The training step of the last update."""
        self._rule()  # refuses an impossible decay here, not at the first update
        self._model = _unwrap(model)
        self.buffers = buffers
        self._device = device
        self._shadow: dict[str, torch.Tensor] = {}
        self._swapped = 0
        if decay < 0.9:
            warnings.warn(
                f"a decay of {decay} averages over about {1 / (1 - decay):.1f} steps. The decay is what the average "
                f"keeps at each step, 0.9999 for example; where {decay} was meant as the share of the new value, "
                f"give {1 - decay:g}",
                UserWarning,
                stacklevel=2,
            )

    def update(self, step: int | None = None) -> None:
        """Take the weights as they are now into the average: call it after each optimizer step.

        If the last update was several steps ago, the decays of all steps between are multiplied, so that the average
        reaches equally far back whether it is updated at every step or at every tenth.

        Args:
            step: The training step that was just made, 1 for the first. Counted here if not given; if training goes
                on from a checkpoint without a stored average, give it.

        Raises:
            UsageError: If the step is not after the last one, or the shadow is swapped in.
            MismatchError: If a weight has changed its shape, or is gone.
        """
        self._refuse_while_swapped("update the average")
        step = self.step + 1 if step is None else int(step)
        if step <= self.step or step < 1:
            raise UsageError(
                f"step {step} cannot be averaged after step {self.step}",
                hint="call update once after each optimizer step, with a step that grows",
            )
        weights = self._weights()
        missing = self._shadow.keys() - weights.keys()
        if missing:
            raise MismatchError(
                f"the model has no weight {min(missing)!r} any more",
                hint="make a new MovingAverage when the model is changed",
                tensor=min(missing),
            )
        for name, shadow in self._shadow.items():
            _check_shape(name, shadow, weights[name])
        mix = get_ema_multi_avg_fn(self._decay_to(step))  # type: ignore[no-untyped-call]
        shadows: list[torch.Tensor] = []
        values: list[torch.Tensor] = []
        converted = 0
        with torch.no_grad():
            for name, weight in weights.items():
                if name not in self._shadow:
                    self._shadow[name] = self._begin(weight)
                    continue
                shadow = self._shadow[name]
                value = weight.detach().to(device=shadow.device, dtype=shadow.dtype)
                shadows.append(shadow)
                values.append(value)
                if value.data_ptr() != weight.data_ptr():
                    converted += value.nbytes
                if converted > _CONVERTED_AT_ONCE:
                    mix(shadows, values, self.num_updates)
                    shadows, values, converted = [], [], 0
            if shadows:
                mix(shadows, values, self.num_updates)
        self.num_updates += 1
        self.step = step

    @contextmanager
    def shadow_weights(self) -> Iterator[None]:
        """The model with the averaged weights, for evaluating and for saving; the trained weights come back after it.

        They come back bit for bit, also after an exception. Inside one such block another changes nothing. Before the
        first update there is no average, and the model keeps its weights. What a block does to the weights is lost
        at its end: do not train in it.

        The trained weights are kept aside meanwhile, which takes as much memory again as they do.

        Raises:
            MismatchError: If a weight has changed its shape, or is gone.
        """
        if self._swapped:
            self._swapped += 1
            try:
                yield
            finally:
                self._swapped -= 1
            return
        weights = self._weights(all_of=self._shadow)
        for name, shadow in self._shadow.items():
            if name not in weights:
                raise MismatchError(
                    f"the model has no weight {name!r} any more",
                    hint="make a new MovingAverage when the model is changed",
                    tensor=name,
                )
            _check_shape(name, shadow, weights[name])
        with torch.no_grad():
            trained = {name: weights[name].detach().clone() for name in self._shadow}
        self._swapped = 1
        try:
            with torch.no_grad():
                for name, shadow in self._shadow.items():
                    weights[name].copy_(shadow)
            yield
        finally:
            with torch.no_grad():
                for name, value in trained.items():
                    weights[name].copy_(value)
            self._swapped = 0

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on, as plain values and tensors: ``torch.load(weights_only=True)`` reads it.

        Store it next to the model's own state dict; ``ckpttool ema-apply`` finds it there under any key.

        Returns:
            ======================  ===================================================================
            ``format``              ``"ckpttool.MovingAverage"``
            ``version``             1
            ``decay``, ``warmup``,  as given
            ``buffers``
            ``num_updates``         how many updates were made
            ``step``                the training step of the last one
            ``shadow``              name to tensor, by the names of the model's own state dict; of tied
                                    weights the first name; frozen parameters and buffers that are not
                                    averaged are not in it
            ======================  ===================================================================

            The tensors are the shadow itself, not copies, as with all state dicts: the next update changes them.
        """
        return {
            "format": FORMAT,
            "version": _VERSION,
            "decay": self.decay,
            "warmup": self.warmup,
            "buffers": self.buffers,
            "num_updates": self.num_updates,
            "step": self.step,
            "shadow": dict(self._shadow),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a stored average, to the same bits as without the interruption.

        Args:
            state: What `state_dict` returned. Its tensors are copied.

        Raises:
            UsageError: If it is not a stored average, was made with another decay or warm-up, or the shadow is swapped
                in.
            MismatchError: If it is not an average of this model: names or shapes differ.
        """
        self._refuse_while_swapped("load an average")
        if state.get("format") != FORMAT or state.get("version") != _VERSION:
            raise UsageError(
                f"this is not a stored moving average (its keys: {', '.join(map(str, list(state)[:5])) or 'none'})",
                hint="give load_state_dict what MovingAverage.state_dict returned",
            )
        for name in ("decay", "warmup", "buffers"):
            if state[name] != getattr(self, name):
                raise UsageError(
                    f"the stored average has {name}={state[name]!r}, and this one {getattr(self, name)!r}",
                    hint=f"make it with {name}={state[name]!r} as before; the decay may be assigned after loading",
                )
        stored: Mapping[str, torch.Tensor] = state["shadow"]
        weights = self._weights(all_of=stored)
        if stored:
            for name in weights:
                if name not in stored:
                    raise MismatchError(
                        f"the stored average has no weight {name!r}",
                        hint="load it into the model it was made of, with the same parameters frozen",
                        tensor=name,
                    )
        shadow: dict[str, torch.Tensor] = {}
        for name, value in stored.items():
            if name not in weights:
                raise MismatchError(
                    f"the stored average has a weight {name!r}, and the model has not",
                    hint="load it into the model it was made of",
                    tensor=name,
                )
            _check_shape(name, value, weights[name])
            shadow[name] = self._begin(weights[name]).copy_(value)
        self._shadow = shadow
        self.num_updates = int(state["num_updates"])
        self.step = int(state["step"])

    def __repr__(self) -> str:
        return (
            f"MovingAverage(decay={self.decay}, warmup={self.warmup}, step={self.step}, "
            f"num_updates={self.num_updates}, weights={len(self._shadow)})"
        )

    def _rule(self) -> ConstantDecay | WarmupDecay:
        return WarmupDecay(self.decay) if self.warmup else ConstantDecay(self.decay)

    def _decay_to(self, step: int) -> float:
        """The product of the decays of the steps since the last update."""
        rule = self._rule()
        if step > self.step + 1:
            return rule.mass(self.step, step)
        return rule.at(step) if isinstance(rule, WarmupDecay) else rule.decay

    def _weights(self, all_of: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        """What is averaged, by name, tied weights once: what is trained, what has a shadow, and buffers if asked for.

        Args:
            all_of: Names to find as well, frozen or not; those of the shadow if not given.
        """
        also = self._shadow if all_of is None else all_of
        weights: dict[str, torch.Tensor] = {
            name: parameter
            for name, parameter in self._model.named_parameters()
            if parameter.requires_grad or name in also
        }
        if self.buffers == "average":
            persistent = self._model.state_dict(keep_vars=True).keys()
            weights |= {name: buffer for name, buffer in self._model.named_buffers() if name in persistent}
        return {name: weight for name, weight in weights.items() if weight.is_floating_point() or weight.is_complex()}

    def _begin(self, weight: torch.Tensor) -> torch.Tensor:
        """A shadow that holds the weight's value."""
        half = weight.is_floating_point() and weight.itemsize < 4
        dtype = torch.float32 if half else weight.dtype
        return weight.detach().to(device=self._device, dtype=dtype, copy=True)

    def _refuse_while_swapped(self, what: str) -> None:
        if self._swapped:
            raise UsageError(
                f"cannot {what} while the averaged weights are in the model",
                hint="leave the shadow_weights block first",
            )


def _check_shape(name: str, shadow: torch.Tensor, weight: torch.Tensor) -> None:
    if shadow.shape != weight.shape:
        raise MismatchError(
            f"{name} is {tuple(weight.shape)} in the model and {tuple(shadow.shape)} in its average",
            hint="make a new MovingAverage when the model is changed",
            tensor=name,
        )


def _unwrap(model: torch.nn.Module) -> torch.nn.Module:
    """The model inside the wrappers that share its parameters but rename them."""
    while True:
        if isinstance(model, DataParallel | DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), torch.nn.Module):
            model = inner
        else:
            return model
