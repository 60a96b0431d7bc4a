"""What Boltzmann machines have in common: parameters, exact sums that are remembered, blocks that
are redrawn."""

from __future__ import annotations

import copy
import functools
import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from experts.families.base import DTYPES
from poe.algebra import support as sets
from poe.algebra.capabilities import Enumerates
from poe.algebra.energy import Energy, Estimate
from poe.spaces.sites import sites_of, vectors

MOST_ENUMERATED = 1 << 20  # states over which log Z is summed one by one
MOST_LISTED = 1 << 16  # states that `enumerate` returns
CHUNK = 1 << 15  # states, or entries of a table, at a time
MOST_UNITS = 24  # bits of a layer over which log Z is summed
MOST_TERMS = (
    1 << 30
)  # factors of that sum which `log_z` takes without being asked: one or two seconds
LOG_MOST = 700.0  # e^700 is still a number in float64


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
        support: sets.Box,
        blocks: Sequence[Tensor],
        learnable: bool,
        name: str | None,
    ) -> None:
        super().__init__(support.event_shape, support=support, name=name)
        for key, value in values.items():
            if learnable and not isinstance(value, nn.Parameter):
                value = nn.Parameter(value)
            if isinstance(value, nn.Parameter):
                self.register_parameter(key, value)
            else:
                self.register_buffer(key, value)
        for index, block in enumerate(blocks):
            self.register_buffer(f"_block_{index}", block.to(self.device), persistent=False)
        self._keys, self._count, self._structure = tuple(values), len(blocks), structure
        self._known: tuple[list[Tensor], list[Any], bool, float | None] | None = None

    @property
    def blocks(self) -> tuple[Tensor, ...]:
        """Index tensors into the flattened event; coordinates of one block are independent given
        all others."""
        return tuple(getattr(self, f"_block_{index}") for index in range(self._count))

    def _flat(self, x: Tensor) -> Tensor:  # (*batch, *event) -> (*batch, n)
        return vectors(x, len(self.event_shape))

    # ---- exact sums

    @property
    def log_z(self) -> Estimate | None:
        """The log of the sum of exp(-E), where it is known or takes no more than a few seconds."""
        value = self.exact_log_z(patient=False)
        return None if value is None else Estimate(value)

    def exact_log_z(self, *, patient: bool = True) -> float | None:
        """log Z in nats, remembered until a parameter changes; None where no exact way is
        affordable. `patient`: tries longer than `log_z` does."""
        tensors = [getattr(self, key) for key in self._keys]
        versions = [(tensor._version, tensor.data_ptr(), tensor.dtype) for tensor in tensors]
        if self._known is not None:
            known, asked, value = self._known[1:]
            same = (
                all(old is new for old, new in zip(self._known[0], tensors, strict=True))
                and known == versions
            )
            if same and (value is not None or asked >= patient):
                return value
        with torch.no_grad():
            value = self._sum(patient)
        self._known = tensors, versions, patient, value
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
            raise ValueError(f"{self} has more than {MOST_LISTED:,} states")
        return self._states(0, int(sites_of(self).counts.prod()))

    def can(self, capability: type) -> bool:
        if capability is Enumerates:
            return sets.is_discrete(self.support) and self._bits <= math.log2(MOST_LISTED)
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
        if self._bits > math.log2(MOST_ENUMERATED) + 1e-9:
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
        tensors = {key: getattr(self, key) for key in self._keys}
        return {
            "shapes": {key: list(tensor.shape) for key, tensor in tensors.items()},
            "learnable": [
                key for key, tensor in tensors.items() if isinstance(tensor, nn.Parameter)
            ],
            "dtype": str(self.dtype).removeprefix("torch."),
            **self._structure,
        }

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
        if dtype not in DTYPES:
            raise ValueError(
                f"{dtype!r} is no precision of a {cls.__name__}; one of {', '.join(DTYPES)}"
            )
        values: dict[str, Tensor] = {
            key: torch.zeros(shape, dtype=DTYPES[dtype]) for key, shape in shapes.items()
        }
        return cls._rebuilt(
            {k: nn.Parameter(v) if k in learnable else v for k, v in values.items()}, structure
        )

    @classmethod
    def _rebuilt(cls, values: dict[str, Tensor], structure: dict[str, Any]) -> Machine:
        """The expert with these parameters and this structure."""
        make: Any = cls
        return make(**values, **structure)


def layered_log_z(weights: Tensor, left: Tensor, right: Tensor) -> float:  # (k, m), (k), (m)
    """log Σ_{x,y} exp(left·x + right·y + xᵀ weights y) over bits x, y: the shorter layer x is
    enumerated, the other summed out,

        log Σ_x exp(left·x) Π_j (1 + exp(right_j + (xᵀ weights)_j)).

    x is cut into two halves, so that each exponential is a product of one that depends on the first
    half and one on the second: m·2^k multiplications, and as many logarithms as keep the products
    of factors below e^700. In float64.
    """
    if len(left) > len(right):
        weights, left, right = weights.T, right, left
    half = len(left) // 2
    upper, lower = (
        _inputs(weights[:half]) + right,
        _inputs(weights[half:]),
    )  # (2^half, m), (2^(k - half), m)
    own = _inputs(left[:half, None]), _inputs(left[half:, None]).T
    reach = right.abs() + weights.abs().sum(0) + math.log(2)
    groups: list[list[int]] = [[]]
    size = 0.0
    for j, most in enumerate(reach.tolist()):
        if size + most > LOG_MOST:
            groups.append([])
            size = 0.0
        groups[-1].append(j)
        size += most
    found = []
    for rows in torch.arange(len(upper)).split(max(1, CHUNK // len(lower))):
        total = own[0][rows] + own[1]
        for group in groups:
            if len(group) == 1:  # perhaps too large an exponent for a factor
                total = total + softplus(
                    upper[rows, group][:, None] + lower[:, group[0]], threshold=40
                )
                continue
            total = total + _factors(upper[rows][:, group].exp(), lower[:, group].exp()).log()
        found.append(total.logsumexp((0, 1)))
    return float(torch.stack(found).logsumexp(0))


def layer_weights(weights: Tensor, left: Tensor, right: Tensor) -> Tensor:
    # (k, m), (k), (m) -> (2^k)
    """log Σ_y exp(left·x + right·y + xᵀ weights y) for all bits x, unit j of x being bit j of its
    number. In float64."""
    found = []
    for numbers in torch.arange(1 << len(left)).split(CHUNK):
        x = (numbers.unsqueeze(-1) >> torch.arange(len(left)) & 1).to(weights)
        found.append(x @ left + softplus(x @ weights + right, threshold=40).sum(-1))
    return torch.cat(found)


def _inputs(weights: Tensor) -> Tensor:  # (k, m) -> (2^k, m)
    """xᵀ weights for all bits x."""
    bits = torch.arange(1 << len(weights)).unsqueeze(-1) >> torch.arange(len(weights)) & 1
    return bits.to(weights) @ weights


def _factors(upper: Tensor, lower: Tensor) -> Tensor:  # (r, m), (s, m) -> (r, s)
    """Π_j (1 + upper_rj lower_sj)."""
    product = upper.new_ones(len(upper), len(lower))
    for a, b in zip(upper.T.contiguous(), lower.T.contiguous(), strict=True):
        product.addcmul_(product, torch.outer(a, b))
    return product


def quadratic_log_z(linear: Tensor, square: Tensor) -> float:  # (k), (k, k)
    """log Σ_x exp(linear·x + ½ xᵀ square x) over bits x, cut into two halves: one matrix product
    joins them. In float64."""
    half = len(linear) // 2
    own, states = [], []
    for part in (slice(None, half), slice(half, None)):
        bits = _inputs(torch.eye(len(linear[part]), dtype=torch.float64))
        states.append(bits)
        own.append(bits @ linear[part] + 0.5 * ((bits @ square[part, part]) * bits).sum(-1))
    cross = states[0] @ square[:half, half:]
    found = []
    for rows in torch.arange(len(cross)).split(max(1, CHUNK // len(states[1]))):
        found.append(
            (own[0][rows].unsqueeze(-1) + own[1] + cross[rows] @ states[1].T).logsumexp((0, 1))
        )
    return float(torch.stack(found).logsumexp(0))


# ---------------------------------------------------------------- layers of bits


def layers_log_z(weights: Tensor, left: Tensor, right: Tensor, *, patient: bool) -> float | None:
    """`layered_log_z` up to 24 units of the shorter layer; unless `patient`, only where it takes a
    second or two."""
    units, others = sorted((len(left), len(right)))
    if units > MOST_UNITS or (not patient and others << units > MOST_TERMS):
        return None
    return layered_log_z(weights, left, right)


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
