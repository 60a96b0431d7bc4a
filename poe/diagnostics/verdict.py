"""The verdict: reasons not to trust draws, conditions of trust in them, and the line that says
which."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from poe.algebra.capabilities import BoundsLogProb
from poe.algebra.energy import Energy, Estimate
from poe.algebra.text import caveats, leaves
from poe.diagnostics.agreement import Agreement
from poe.diagnostics.evidence import Diagnostics
from poe.spaces.structure import Structure

RHAT_LIMIT = 1.05
ESS_LIMIT = 100  # draws
STEIN_LIMIT = 0.001  # p-value
PARETO_LIMIT = 0.7
ACCEPTANCE_LIMIT = 0.2
SWAP_LIMIT = 0.02  # acceptance of swaps between neighbouring rungs
# of gradients; as many divergent proposals, which are rejected, are harmless
DIVERGENT_SHARE = 1e-4
# of the proposals of draws. A half-space of mass p beside them gets a share of p/2 or more of the
# proposals of tuned kernels (measured, d = 1 to 30): below the limit at most .2 % of the mass is
# lost there
NONFINITE_SHARE = 1e-3
LOG_Z_LIMIT = 5.0  # standard errors between two values of log Z
ANNEAL = 'poe.sample(..., method="annealed")'


def reasons(d: Diagnostics, draws: int, *, discrete: bool = False) -> list[str]:
    """Why so many draws with this evidence should not be trusted, the most serious reason first;
    empty where none was found.

    A reason reads "what was found; try what to type". Of independent draws only their values are
    judged.
    """
    found = []
    if d.invalid:
        found.append(
            f"{d.invalid} draws are not finite or have energy NaN or +inf: an expert fails there; "
            "try draws.chains[~draws.energy.isfinite()] to see where"
        )
    if d.independent or draws == 0:
        return found
    return found + _of_chains(d, draws, discrete) + _of_steps(d)


def _of_chains(d: Diagnostics, draws: int, discrete: bool) -> list[str]:
    """Reasons in R-hat, the Stein test, weights and ESS."""
    found = []
    particles = d.max_ess < np.inf  # draws of importance sampling or SMC
    annealed = d.ancestors == d.ancestors and np.isnan(d.weight_ess)
    # of annealed particles, thin= is how many there are for each draw
    more = "poe.sample(..., thin=4)" if annealed else f"poe.sample(..., {max(4 * draws, 1000)})"
    worst = d.rhat if np.isnan(d.rhat) else max(d.rhat, d.rhat_energy)
    few = not particles and draws < ESS_LIMIT  # no ESS reaches the limit
    if few:
        found.append(
            f"too few draws to tell: R-hat and ESS need {ESS_LIMIT} effective draws, and these are "
            f"{draws}; try poe.sample(..., 1000)"
        )
    elif RHAT_LIMIT < worst <= d.chance:
        found.append(
            f"too few draws to tell: R-hat {worst:.3f} > {RHAT_LIMIT}, and populations of ESS "
            f"{d.ess_bulk:.0f} show up to {d.chance:.2f} where they agree; try {more}"
        )
    elif worst > RHAT_LIMIT:
        cure = more if particles or discrete or not np.isnan(d.swaps) else ANNEAL
        found.append(
            f"chains disagree: R-hat {worst:.3f} > {RHAT_LIMIT}, so shares of modes and means are "
            f"wrong; try {cure}"
        )
    if d.stein_pvalue < STEIN_LIMIT:
        cure = (
            "poe.sample(..., thin=4)"
            if particles
            else "poe.sample(..., warmup=2000, thin=4) or a kernel with metropolis=True"
        )
        found.append(
            f"the draws do not follow the target's score (Stein test, p = {d.stein_pvalue:.2g}); "
            f"try {cure}"
        )
    if d.stuck:
        found.append(
            f"{d.stuck} chains never moved; they count as no draws; try poe.sample(..., "
            "warmup=2000), without init="
        )
    if particles and d.pareto_k > PARETO_LIMIT:
        found.append(
            f"few particles carry the weight: Pareto k {d.pareto_k:.2f} > {PARETO_LIMIT}; try "
            f"{ANNEAL}"
        )
    least = min(d.ess_bulk, d.ess_tail)
    # all particles are judged, and these are more than the draws that were asked for
    limit = min(ESS_LIMIT, draws / 2) if particles else ESS_LIMIT
    if not (few or least >= limit):
        thin = 1 if particles or not least > 0 else int(np.ceil(draws / least))
        cure = f"poe.sample(..., thin={thin})" if draws >= 2 * ESS_LIMIT and thin > 2 else more
        found.append(f"few independent draws: ESS {least:.0f} < {limit:.0f}; try {cure}")
    if np.isnan(worst) and not d.invalid:
        found.append(
            "R-hat needs at least two chains of four draws: agreement between chains was not "
            f"checked; try poe.sample(..., {max(draws, 400)}, chains=4)"
        )
    return found


def _of_steps(d: Diagnostics) -> list[str]:
    """Reasons in the proposals of a run."""
    found = []
    if fails(d.nonfinite, d.nonfinite_share):
        share = f" ({100 * d.nonfinite_share:.2g} %)" if d.nonfinite_share > 0 else ""
        found.append(
            f"{d.nonfinite:,} proposals had a non-finite energy or gradient{share}: they were "
            "rejected, and an expert fails there, where mass may lie; try an expert whose support "
            "leaves these points out"
        )
    share = DIVERGENT_SHARE * (100 if d.max_ess < np.inf else 1)
    if d.divergent > d.gradients * share:
        found.append(
            f"{d.divergent} divergent proposals: the energy rises too steeply somewhere for this "
            "step size; try a kernel with a smaller step_size="
        )
    if d.acceptance < ACCEPTANCE_LIMIT:
        found.append(
            f"acceptance {d.acceptance:.2f} is low: the chains hardly move; try poe.sample(..., "
            "warmup=2000)"
        )
    if d.swaps < SWAP_LIMIT:
        found.append(
            f"neighbouring rungs hardly swap ({d.swaps:.3f}): the ladder does not connect start "
            f"and target; try {ANNEAL}"
        )
    return found


def fails(nonfinite: int, share: float) -> bool:
    """Whether points that are not finite say that mass is missing: their `share`, as in
    `Diagnostics.nonfinite_share`, is above `NONFINITE_SHARE`, or unknown."""
    return nonfinite > 0 and not share <= NONFINITE_SHARE


def log_z_reasons(known: Estimate | None, found: Estimate | None) -> list[str]:
    """A reason where log Z is known and the draws' own estimate differs from it: they have missed
    mass, or have too much in some place."""
    if known is None or found is None:
        return []
    error = math.hypot(known.standard_error, found.standard_error)
    if abs(found.value - known.value) <= LOG_Z_LIMIT * error + 1e-3:
        return []
    return [
        f"log Z is known to be {known}, and these draws make it {found}: modes have been missed; "
        "try another method= or start"
    ]


def unknown_mass(energy: Energy, result: str = "these draws mean") -> str:
    """A warning that the target may be improper."""
    return (
        f"it is unknown whether {energy} has finite mass (proper is unknown); if it has not, "
        f"{result} nothing"
    )


def target_warnings(structure: Structure, agreement: Agreement | None) -> dict[str, str | None]:
    """Warnings that follow from the target, whatever the draws, each with the condition under
    which the draws can be trusted all the same, or None."""
    energy = structure.energy
    found: dict[str, str | None] = dict.fromkeys(
        caveats(energy), "raw energies are to be weighed as they stand"
    )
    for leaf in leaves(energy):
        if leaf.can(BoundsLogProb):
            note = (
                f"the energy of {leaf} bounds -log p from above: moved draws follow exp(-E), "
                f"weighed ones its own p, and {leaf}.gap(x) says how far they are apart"
            )
            found[note] = f"the bound of {leaf} is tight"
    if agreement is not None:
        found |= dict.fromkeys(agreement.extrapolations)
        condition = "the posteriors are about the same parameters"
        found |= dict.fromkeys([*agreement.tensions, *agreement.unchecked], condition)
    if structure.proper is None:
        found[unknown_mass(energy)] = "the target has finite mass"
    return found


def verdict(n: int, found: Sequence[str], conditions: dict[str, str], d: Diagnostics) -> str:
    """The line to act on, of n draws with these reasons, conditions and evidence."""
    if n == 0:
        return "NOT TRUSTED: there are no draws; try poe.sample(..., 1000)"
    if found:
        more = f" (and {len(found) - 1} more, above)" if len(found) > 1 else ""
        return f"NOT TRUSTED: {found[0]}{more}"
    least = min(d.ess_bulk, d.ess_tail)
    facts = [f"{n:,} independent draws" if d.independent else f"ESS {least:,.0f}"]
    if not (d.independent or d.rhat != d.rhat):
        facts.append(f"R-hat {max(d.rhat, d.rhat_energy):.3f}")
    if d.stein_pvalue == d.stein_pvalue:
        facts.append(f"Stein test p {d.stein_pvalue:.2g}")
    given = " and ".join(dict.fromkeys(conditions.values()))
    return f"TRUSTED{f' if {given}' if given else ''}: {', '.join(facts)}"
