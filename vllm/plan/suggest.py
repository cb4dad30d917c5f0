"""Degree, batch and length for an instance type.

The rule: the length asked for, or the model's own up to 8192; the smallest degree at which the batch asked for, or 32
sequences, fits, else the degree at which most do. A smaller degree leaves cores for further replicas, each a server of
its own. The batch is then the largest power of two that fits, up to what was asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from vllm.plan.instances import Instance
from vllm.plan.plan import Plan

DEFAULT_LENGTH = 8192
DEFAULT_ROWS = 32

PlanAt = Callable[[int, int, int], Plan]
"""The plan for a degree, rows and a length."""


@dataclass(frozen=True, slots=True)
class Option:
    """One degree. rows: the most sequences that fit one replica, 0 if none. kv_copies: KV memory over all cores
    relative to the model's own heads. why_not: why the degree cannot be used; "" if it can."""

    degree: int
    replicas: int
    weight_bytes: int
    kv_copies: float
    rows: int
    why_not: str


@dataclass(frozen=True, slots=True)
class Suggestion:
    instance: str
    length: int
    options: list[Option]
    chosen: Option | None
    rows: int
    buckets: dict[str, list[int]]
    reason: str

    def flags(self) -> str:
        """What to add to the command line."""
        if self.chosen is None:
            return ""
        return f"--tensor-parallel-size {self.chosen.degree} --max-num-seqs {self.rows} --max-model-len {self.length}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "instance": self.instance,
            "options": [asdict(option) for option in self.options],
            "tensor_parallel_size": self.chosen.degree if self.chosen else None,
            "max_num_seqs": self.rows,
            "max_model_len": self.length,
            "buckets": self.buckets,
            "flags": self.flags(),
            "reason": self.reason,
        }


def suggest(
    plan_at: PlanAt,
    instance: Instance,
    degree: int | None = None,
    rows: int | None = None,
    length: int | None = None,
    longest: int | None = None,
) -> Suggestion:
    """What to use where `degree`, `rows` and `length` were asked for (None: free) of a model of `longest` positions."""
    length = length or min(longest or DEFAULT_LENGTH, DEFAULT_LENGTH)
    wanted = rows or DEFAULT_ROWS
    lnc = plan_at(1, wanted, length).lnc
    degrees = [degree] if degree else instance.degrees(lnc)
    options = [_option(plan_at(each, 1, length), each, instance) for each in degrees]
    usable = [option for option in options if option.rows]
    chosen = next((option for option in usable if option.rows >= wanted), None)
    if chosen is None and usable:
        chosen = max(usable, key=lambda option: option.rows)
    if chosen is None:
        reason = f"no degree of {instance.name} holds a sequence of {length} tokens"
        return Suggestion(instance.name, length, options, None, 0, {}, reason)
    fitting = min(chosen.rows, wanted)
    batch = fitting if fitting == wanted else 1 << (fitting.bit_length() - 1)
    config = plan_at(chosen.degree, batch, length).neuron_config
    buckets = {"context_encoding_buckets": config.context_buckets, "token_generation_buckets": config.token_buckets}
    reason = (
        f"degree {chosen.degree} is the smallest that holds {batch} sequences of {length} tokens"
        if chosen.rows >= wanted
        else f"degree {chosen.degree} holds most sequences of {length} tokens: {chosen.rows}"
    )
    return Suggestion(instance.name, length, options, chosen, batch, buckets, reason)


def _option(plan: Plan, degree: int, instance: Instance) -> Option:
    memory = plan.memory
    rows = memory.most_rows(plan.budget_on(instance)) if memory else 0
    if plan.faults:
        rows = 0
    return Option(
        degree=degree,
        replicas=instance.logical_cores(plan.lnc) // degree,
        weight_bytes=memory.weight_bytes if memory else 0,
        kv_copies=plan.heads.kv_copies if plan.heads else 0.0,
        rows=rows,
        why_not="; ".join(str(fault.name) for fault in plan.faults),
    )
