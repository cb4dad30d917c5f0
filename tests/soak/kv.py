"""`make soak-kv`: the scheduler and the `null` target under random traffic, a million steps.

    python -m tests.soak.kv [--steps 1000000] [--seed 0]

Every layout in turn: block sizes, budgets of a step, pools with and without room to spare, prefixes offloaded to a host
memory that is too small for them. Each text is held against the same request alone on contiguous KV; after every round
no block, promise, row or queue entry may be left. Ends in one JSON line; exit status 1 at the first fault.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from tests.neuron.driver import resolved_config
from tests.neuron.mini_engine import MiniEngine, variant
from tests.neuron.test_block_kv import LONGEST, Oracle, check, traffic
from tests.tiny import make_checkpoint
from vllm.config import VllmConfig
from vllm.core.contract import ModelRunnerOutput, SchedulerOutput
from vllm.kv.store import HostMemory, KVStore
from vllm.runner.model_runner import NeuronModelRunner
from vllm.targets.null import NullDeviceModel

ROUNDS_A_LAYOUT = 5


class StoringRunner(NeuronModelRunner):
    """A model runner with a KV store before it, as in a worker."""

    def __init__(self, config: VllmConfig, device: NullDeviceModel, host_blocks: int) -> None:
        super().__init__(config, device)
        self.store = KVStore(device, [HostMemory(host_blocks, device.kv_block_bytes)])

    def execute(self, step: SchedulerOutput, _: ModelRunnerOutput | None = None) -> ModelRunnerOutput:
        result = ModelRunnerOutput()
        self.store.start(step.kv_orders, result)
        self.store.poll(result)
        return super().execute(step, result)


def random_layout(base: VllmConfig, rng: random.Random) -> VllmConfig:
    config = variant(
        base,
        block_size=rng.choice([1, 2, 3, 5, 8, 16]),
        prefix_caching=True,
        step_tokens=rng.choice([0, 1, 4, 7, 33, 200]),
        max_num_seqs=rng.randint(1, 5),
        prefill_batch_size=rng.randint(1, 5),
        num_blocks=rng.choice([0, 0, 60, 500]),
    )
    offloads = 1.0 if rng.random() < 0.5 else None
    return config.replace(cache_config=replace(config.cache_config, kv_offloading_size=offloads))


def make_engine(config: VllmConfig, rng: random.Random) -> MiniEngine:
    device = NullDeviceModel(config)
    engine = MiniEngine(config, device)
    if config.cache_config.offloads_kv:
        engine.runner = StoringRunner(config, device, rng.choice([1, 7, 100]))
    return engine


def run(num_steps: int, seed: int) -> dict[str, float]:
    rng, started = random.Random(seed), time.monotonic()
    totals = {"steps": 0, "requests": 0, "layouts": 0, "hits": 0, "external_hits": 0}
    with tempfile.TemporaryDirectory() as scratch:
        base = resolved_config(make_checkpoint(Path(scratch)), "null", max_model_len=LONGEST)
        oracle = Oracle(base, NullDeviceModel)
        while totals["steps"] < num_steps:
            engine = make_engine(random_layout(base, rng), rng)
            for _ in range(ROUNDS_A_LAYOUT):
                asked = traffic(engine, rng, 300)
                engine.check_clean()
                check(engine, asked, oracle)
            stats = engine.scheduler.stats()
            totals["steps"] += engine.num_steps
            totals["requests"] += len(engine.results)
            totals["layouts"] += 1
            totals["hits"] += stats.prefix_cache_hits
            totals["external_hits"] += stats.external_prefix_cache_hits
            print(f"{totals['steps']} steps, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return {**totals, "seed": seed, "seconds": round(time.monotonic() - started, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(json.dumps(run(args.steps, args.seed)))


if __name__ == "__main__":
    main()
