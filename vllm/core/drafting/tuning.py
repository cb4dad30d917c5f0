"""The numbers of the controller.

A number whose source is "chosen" was chosen by hand; the simulation in `tests/core/test_speculation.py` holds with it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """Each number with its unit, its meaning and where it comes from."""

    # Choosing a count.

    least_gain: float = 1.01
    """Ratio of paces (tokens per second). Drafting must promise this much over plain decoding to be done at all.
    Source: chosen."""
    first_steps: int = 4
    """Steps. Plain steps that are measured before anything else is tried. Source: chosen."""
    idle_steps: int = 3
    """Steps that draft nothing before the choice is made again; twice as many if all counts are far from paying.
    Source: measured, the choice itself takes time on the host (docs/LOG.md, 2026-11-29)."""
    far_pace: float = 0.9
    """Ratio of paces. Counts are far from paying if none reaches this share of plain decoding. Source: chosen."""
    growth: int = 2
    """Ratio. A step drafts at most this many times the widest mean that was measured. Source: measured, wide first
    steps made a draft model read many prompts in vain (docs/LOG.md, "Speculation of many rows")."""

    # Probes.

    probe_steps: int = 8
    """Steps. A count is probed again after this many at the earliest. Source: chosen."""
    probes_in_a_row: int = 8
    """Probes. A probe whose drafts were all accepted is repeated up to this often. Source: simulation. Without a
    bound, probing never stopped where reading costs more than drafts bring (docs/LOG.md, 2026-11-25)."""
    regret_steps: int = 250
    """Steps per lost step. A count that loses a share s of a step's time waits for this many times s. Source: three
    counts that are probed this seldom lose 3 / 250, about one per cent."""
    reading_steps: int = 200
    """Steps per step's time of reading. A probe waits for this many times the time in which a draft model reads for it,
    in steps. Source: reading in vain then takes at most 1 / 200 of the time."""

    # Credit.

    allowance: float = 0.01
    """Plain steps per plain step. The share of plain decoding's pace that may be lost by trying. Source: the goal."""
    first_credit: float = 2.0
    """Plain steps. Credit at the start. Source: chosen."""
    most_credit: float = 4.0
    """Plain steps. The most that can be lost at once, whatever was gained before. Source: chosen."""
    late_factor: float = 2.0
    """Ratio of seconds. A step that takes more than this many times its usual time was disturbed. Source: chosen; the
    simulation disturbs steps by two and eight times."""
    late_steps: int = 3
    """Steps. After this many disturbed steps in a row, their whole time counts. Source: chosen."""
    plain_steps: int = 32
    """Steps. Plain steps over which their mean time is taken. Source: chosen."""

    # Costs.

    samples: int = 15
    """Samples of one mean number of drafts that are kept. Source: chosen."""
    sure_samples: int = 4
    """Samples from which a mean's time is trusted in full; with fewer, it is probed sooner. Source: chosen."""
    quantile_divisor: int = 3
    """The sample that counts is the one at this fraction of the sorted ones: the lowest third. Source: chosen; the
    simulation disturbs one step in seven."""
    slope_beyond: float = 0.5
    """Ratio of slopes. Growth of a step's time beyond the widest measured mean, relative to that below it.
    Source: chosen, so that larger counts are tried."""
    overhead_steps: int = 32
    """Steps over which the time of a draft model's reading is averaged. Source: chosen."""

    # Acceptance.

    forget: float = 0.985
    """Factor per observation. Weight that older observations keep: the last 1 / (1 - 0.985), about 67, count most.
    Source: chosen."""
    prior_rate: float = 0.7
    """Share. Acceptance that is assumed before anything was seen. Source: chosen; too low a rate is never tried."""
    prior_weight: float = 8.0
    """Observations that the assumption is worth. Source: chosen."""
    eligible_pace: float = 0.03
    """Factor per step. Pace at which the share of rows that may draft is learnt. Source: chosen."""
    least_share: float = 0.01
    """Share. No learnt share falls below it, so that it can be found to have risen. Source: chosen."""

    # One request.

    shortest_pause: int = 8
    """Steps. First pause of a request whose drafts fail; each further pause is twice as long. Source: chosen."""
    longest_pause: int = 128
    """Steps. Longest such pause. Source: chosen."""
    own_forget: float = 0.85
    """Factor per verification. Weight that a request's older verifications keep: about the last seven.
    Source: chosen."""
    own_weight: float = 3.0
    """Verifications (weighted) before a request is judged by its own drafts. Source: chosen."""
    break_even: float = 0.9
    """Share of the tokens at which drafts break even that a request must reach.
    Source: chosen."""
    least_needed: float = 0.05
    """Tokens per verification that are asked of a request even where drafts seem to be free. Source: chosen."""


TUNING = Tuning()
