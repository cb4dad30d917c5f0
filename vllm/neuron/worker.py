"""Owns a device: loads the model, runs steps on it, says what it holds."""

from __future__ import annotations

from typing import Any

from vllm.config import VllmConfig
from vllm.core.contract import Capabilities, ModelRunnerOutput, SchedulerOutput
from vllm.neuron.model_loader import PhaseReport, load_model
from vllm.neuron.model_runner import NeuronModelRunner


class NeuronWorker:
    """One process's device. Construction loads, and compiles if it must."""

    def __init__(self, config: VllmConfig, report: PhaseReport | None = None) -> None:
        self.device, self.load_info = load_model(config, report)
        self.runner = NeuronModelRunner(config, self.device)

    @property
    def capabilities(self) -> Capabilities:
        return self.device.capabilities

    def execute(self, step: SchedulerOutput) -> ModelRunnerOutput:
        return self.runner.execute(step)

    def stats(self) -> dict[str, Any]:
        return {**self.load_info.to_dict(), "memory": self.device.memory()}

    def shutdown(self) -> None:
        self.device.shutdown()
