"""Training of heads: cross-entropy against the target's own distribution over the draft's vocabulary."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from drafts.features import Features
from drafts.heads import Head

Output = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Schedule:
    """updates: steps of the optimiser. batch: windows a step. unroll: drafts in a row that are trained."""

    updates: int
    batch: int = 4
    unroll: int = 2
    learning_rate: float = 1e-3
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Task:
    """One head to train.

    features: "hidden" or "auxiliary" of `Features`. embedding: the target's table. target_head: the target's output
    matrix. output: hidden states -> logits over the draft's vocabulary. draft_ids: the target's ids of it, ascending.
    """

    head: Head
    features: str
    embedding: torch.Tensor
    target_head: torch.Tensor
    output: Output
    draft_ids: torch.Tensor


def train(task: Task, data: Features, schedule: Schedule, log: Callable[[str], None] = print) -> None:
    """AdamW with a short warm-up and a cosine. Deterministic for a number of threads."""
    generator = torch.Generator().manual_seed(schedule.seed)
    parameters = [p for p in task.head.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=schedule.learning_rate, weight_decay=0.01, betas=(0.9, 0.95))
    warm = max(schedule.updates // 20, 1)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min((n + 1) / warm, 0.05 + 0.95 * (1 + math.cos(math.pi * n / schedule.updates)) / 2)
    )
    order: list[int] = []
    started, shown = time.perf_counter(), 0.0
    for update in range(schedule.updates):
        while len(order) < schedule.batch:
            order = torch.randperm(data.num_windows, generator=generator).tolist() + order
        windows = torch.tensor([order.pop() for _ in range(schedule.batch)])
        loss = _loss(task, data, windows, schedule.unroll)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        rate.step()
        shown = loss.item() if not update else 0.95 * shown + 0.05 * loss.item()
        if update % 50 == 0:
            log(f"update {update} of {schedule.updates}: loss {shown:.3f}, {time.perf_counter() - started:.0f} s")


def _batch(
    task: Task, data: Features, windows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embeddings, features, the target's hidden states, and which positions are real."""
    tokens = data.tokens[windows]
    real = torch.arange(tokens.shape[1]) < data.lengths[windows, None]
    features = getattr(data, task.features)[windows].float()
    return task.embedding[tokens], features, data.hidden[windows].float(), real


def _loss(task: Task, data: Features, windows: torch.Tensor, unroll: int) -> torch.Tensor:
    embeddings, features, hidden, real = _batch(task, data, windows)
    with torch.no_grad():
        wanted = (hidden[real] @ task.target_head[task.draft_ids].T).softmax(-1)
    losses, weight = [], 0.0
    for step, states in enumerate(task.head.states(embeddings, features, unroll)):
        since = torch.arange(real.shape[1]) >= step
        errors = F.cross_entropy(task.output(states[real]), wanted, reduction="none")
        losses.append(0.8**step * errors[since.expand_as(real)[real]].mean())
        weight += 0.8**step
    return torch.stack(losses).sum() / weight


@torch.inference_mode()
def agreement(task: Task, data: Features, unroll: int) -> list[float]:
    """How often the j-th draft in a row is the target's greedy token, given that those before it were."""
    right, tried = [0] * unroll, [0] * unroll
    for window in range(data.num_windows):
        embeddings, features, hidden, real = _batch(task, data, torch.tensor([window]))
        tokens = (hidden[0] @ task.target_head.T).argmax(-1)
        alive = real[0].clone()
        for step, states in enumerate(task.head.states(embeddings, features, unroll)):
            drafts = task.draft_ids[task.output(states[0]).argmax(-1)]
            alive[:step] = False
            hits = alive & (drafts == tokens)
            tried[step] += int(alive.sum())
            right[step] += int(hits.sum())
            followed = F.pad(hits & _follows(tokens, data.tokens[window]), (1, 0))[:-1]
            alive = followed & real[0]
    return [hit / max(of, 1) for hit, of in zip(right, tried, strict=True)]


def _follows(tokens: torch.Tensor, sequence: torch.Tensor) -> torch.Tensor:
    """Whether the target's greedy token is the one that comes next, so that a further draft stands on true ground."""
    return F.pad(sequence[1:], (0, 1), value=-1) == tokens
