"""Owns a device: loads the model, runs steps on it, says what it holds."""

from __future__ import annotations

from typing import Any

from vllm.config import VllmConfig
from vllm.core.contract import Capabilities, ModelRunnerOutput, SchedulerOutput
from vllm.kv.store import open_store
from vllm.runner.model_loader import PhaseReport, load_model
from vllm.runner.model_runner import NeuronModelRunner

LOAD_WAIT_SECONDS = 0.02
"""How long a step with nothing else to do waits for a load, in seconds: requests that arrive meanwhile wait as long."""


class NeuronWorker:
    """One process's device. Construction loads, and compiles if it must."""

    def __init__(self, config: VllmConfig, report: PhaseReport | None = None) -> None:
        self.device, self.load_info = load_model(config, report)
        self.runner = NeuronModelRunner(config, self.device)
        self.kv_store = open_store(config, self.device)

    @property
    def capabilities(self) -> Capabilities:
        return self.device.capabilities

    def execute(self, step: SchedulerOutput) -> ModelRunnerOutput:
        result = ModelRunnerOutput()
        if self.kv_store:
            self.kv_store.start(step.kv_orders, result)
            self.kv_store.poll(result, LOAD_WAIT_SECONDS if step.waits_for_kv else 0.0)
        return self.runner.execute(step, result)

    def stored_prefixes(self) -> list[bytes]:
        return self.kv_store.hashes() if self.kv_store else []

    def reset_kv_store(self) -> None:
        if self.kv_store:
            self.kv_store.clear()

    def stats(self) -> dict[str, Any]:
        store = {"kv_store": self.kv_store.stats()} if self.kv_store else {}
        return {**self.load_info.to_dict(), "memory": self.device.memory(), **store}

    def shutdown(self) -> None:
        if self.kv_store:
            self.kv_store.close()
        self.device.shutdown()
