"""What Boltzmann machines have in common: parameters, exact sums that are kept, blocks that are
redrawn."""

from __future__ import annotations

import copy
import functools
import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from experts.boltzmann.sums import CHUNK
from experts.families import parameters as param
from poe.algebra import support as sets
from poe.algebra.capabilities import Enumerates
from poe.algebra.energy import Energy, Estimate
from poe.algebra.fingerprint import Fingerprint
from poe.spaces.sites import sites_of, vectors

MAX_SUMMED_STATES = 1 << 20  # over which log Z is summed one by one
MAX_LISTED_STATES = 1 << 16  # that `enumerate` returns


class Machine(Energy):
    """An energy with parameters whose log Z is a sum that may be worked out, and whose coordinates
    fall into blocks.

    Arguments:
        values: the parameters, floating tensors; each is a buffer, or learned where it is an
            `nn.Parameter` already or `learnable`.
        structure: the further arguments, plain JSON, that rebuild the expert.
        blocks: index tensors into the flattened event, a partition; coordinates of one block are
            independent given all others (and the hidden units).
    """

    def __init__(
        self,
        values: dict[str, Tensor],
        structure: dict[str, Any],
        *,
        event_shape: Sequence[int],
        support: sets.Constraint,
        blocks: Sequence[Tensor],
        learnable: bool,
        name: str | None,
    ) -> None:
        super().__init__(event_shape, support=support, name=name)
        param.hold(self, values, learnable=learnable)
        for index, block in enumerate(blocks):
            self.register_buffer(f"_block_{index}", block.to(self.device), persistent=False)
        self._keys, self._count, self._structure = tuple(values), len(blocks), structure
        self._log_z: tuple[Fingerprint, bool, float | None] | None = None  # for which patience

    @property
    def _values(self) -> dict[str, Tensor]:
        return {key: getattr(self, key) for key in self._keys}

    @property
    def blocks(self) -> tuple[Tensor, ...]:
        """Index tensors into the flattened event; coordinates of one block are independent given
        all others."""
        return tuple(getattr(self, f"_block_{index}") for index in range(self._count))

    def _flat(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch, n)
        return vectors(x, len(self.event_shape))

    def _floats(self, x: Tensor) -> Tensor:
        return x if x.is_floating_point() else x.to(self.dtype)

    # ---- exact sums

    @property
    def log_z(self) -> Estimate | None:
        """The log of the sum of exp(-E), where it is known or takes at most a few seconds."""
        value = self.exact_log_z(patient=False)
        return None if value is None else Estimate(value)

    def exact_log_z(self, *, patient: bool = True) -> float | None:
        """log Z in nats, kept until a parameter changes; None where no exact way is affordable.
        `patient`: tries longer than `log_z` does."""
        tensors = self._values.values()
        if self._log_z is not None:
            seen, asked, value = self._log_z
            if (value is not None or asked >= patient) and seen.matches(tensors):
                return value
        with torch.no_grad():
            value = self._sum(patient)
        self._log_z = Fingerprint(tensors), patient, value
        return value

    @abstractmethod
    def _sum(self, patient: bool) -> float | None:
        """log Z in nats, worked out in float64; None where that takes too long."""

    def _exact(self, key: str) -> Tensor:
        """A parameter in float64 on the CPU, without its graph."""
        return getattr(self, key).detach().double().cpu()

    # ---- states and blocks

    @property
    def _bits(self) -> float:
        """log2 of the number of states."""
        return float(sites_of(self).counts.double().log2().sum())

    def enumerate(self) -> Tensor:
        """Every state once, (states, *event). Raises ValueError where they are more than 65,536."""
        if not self.can(Enumerates):
            raise ValueError(f"{self} has more than {MAX_LISTED_STATES:,} states")
        return self._states(0, int(sites_of(self).counts.prod()))

    def can(self, capability: type) -> bool:
        if capability is Enumerates:
            return sets.is_discrete(self.support) and self._bits <= math.log2(MAX_LISTED_STATES)
        return super().can(capability)

    def _states(self, start: int, stop: int) -> Tensor:
        """States number start to stop - 1, the last site varying fastest, (stop - start,
        *event)."""
        sites = sites_of(self)
        weight = sites.counts.flip(0).cumprod(0).flip(0) // sites.counts
        digits = torch.arange(start, stop).unsqueeze(-1) // weight % sites.counts
        x = sites.low + sites.step * digits
        return x.reshape(-1, *self.event_shape).to(self.device, self._point_dtype)

    @property
    def _point_dtype(self) -> torch.dtype:
        """The type of a state: floating for two values, long for more."""
        return self.dtype

    def _enumerated(self) -> float | None:
        """log Z state by state; None where there are too many."""
        if self._bits > math.log2(MAX_SUMMED_STATES) + 1e-9:
            return None
        twin, total = copy.deepcopy(self).double().cpu(), int(sites_of(self).counts.prod())
        parts = [
            (-twin.forward(twin._states(start, min(start + CHUNK, total)))).logsumexp(0)
            for start in range(0, total, CHUNK)
        ]
        return float(torch.stack(parts).logsumexp(0))

    @abstractmethod
    def sample_block(self, x: Tensor, block: int, uniforms: Tensor) -> Tensor:
        # (*batch, *event), (*batch, uniforms of the block) -> (*batch, *event)
        """x with one block redrawn, a pure function of the uniforms that leaves exp(-E)
        invariant."""

    def _redrawn(self, x: Tensor, block: int, logits: Tensor, uniforms: Tensor) -> Tensor:
        return sites_of(self).redraw(x, self.blocks[block], logits, uniforms, len(self.event_shape))

    # ---- files

    def config(self) -> dict[str, Any]:
        return param.recipe(self._values, self.dtype) | self._structure

    @classmethod
    def from_config(
        cls,
        *,
        shapes: dict[str, list[int]],
        learnable: Sequence[str] = (),
        dtype: str = "float32",
        **structure: Any,
    ) -> Machine:
        """An expert whose parameters have these shapes, to be filled by `load_state_dict`."""
        zeros = param.blanks(lambda key, shape: torch.zeros(shape), shapes, learnable, dtype)
        return cls._rebuilt(zeros, structure)

    @classmethod
    def _rebuilt(cls, values: dict[str, Tensor], structure: dict[str, Any]) -> Machine:
        """The expert with these parameters and this structure."""
        make: Any = cls
        return make(**values, **structure)


def unit_vector(key: str, value: Tensor, n: int) -> Tensor:
    """A vector of n numbers, one for each unit; an `nn.Parameter` keeps its shape, where that
    broadcasts to it."""
    value = value if value.ndim < 2 or isinstance(value, nn.Parameter) else value.flatten()
    if value.shape not in ((), (1,), (n,)):
        raise ValueError(f"{key} of shape {tuple(value.shape)} does not fit {n} units")
    return value if isinstance(value, nn.Parameter) else value.expand(n).clone()


def shared_dtype(factors: Sequence[tuple[Any, float]]) -> torch.dtype:
    """The precision that all experts of a product agree on."""
    return functools.reduce(torch.promote_types, [energy.dtype for energy, _ in factors])
