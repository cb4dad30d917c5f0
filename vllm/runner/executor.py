"""Reaches the ranks. One process drives all NeuronCores of a host, so the one worker lives here."""

from __future__ import annotations

from typing import Any

from vllm.config import VllmConfig
from vllm.core.contract import Capabilities, ModelRunnerOutput, SchedulerOutput
from vllm.logger import init_logger
from vllm.runner.model_loader import PhaseReport
from vllm.runner.worker import NeuronWorker
from vllm.settings.buckets import BucketStats

logger = init_logger(__name__)


class NeuronExecutor:
    """The `core.contract.Executor` of the Neuron backend."""

    def __init__(self, config: VllmConfig, report: PhaseReport | None = None) -> None:
        """report: told how far loading has come."""
        self.worker = NeuronWorker(config, report)
        self.bucket_stats = BucketStats()

    @property
    def capabilities(self) -> Capabilities:
        return self.worker.capabilities

    def execute(self, scheduler_output: SchedulerOutput) -> ModelRunnerOutput:
        """Run one step. Raises only when the device itself is unusable."""
        output = self.worker.execute(scheduler_output)
        self.bucket_stats.add(output.bucket_uses)
        return output

    def stats(self) -> dict[str, Any]:
        """Start-up seconds by phase, artifact hit, bytes by kind, padding by bucket."""
        return {**self.worker.stats(), "padding": self.bucket_stats.to_dict()}

    def stored_prefixes(self) -> list[bytes]:
        """Hashes of the prefix blocks that the KV store holds."""
        return self.worker.stored_prefixes()

    def reset_prefix_cache(self, reset_store: bool = False) -> None:
        """Empty the KV store if that is asked for. In the KV cache nothing belongs to a prefix: the block pool alone
        knows which blocks may be reused."""
        if reset_store:
            self.worker.reset_kv_store()

    def check_health(self) -> None:
        """The device lives in this process: if this runs, it does."""

    def shutdown(self) -> None:
        if summary := self.bucket_stats.summary():
            logger.info("bucket padding: %s", summary)
        self.worker.shutdown()
