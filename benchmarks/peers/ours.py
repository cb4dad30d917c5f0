"""This package, on its `cpu` target."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from benchmark_serving import serving
from engine_runs import Job
from machine import commit
from model_files import WIDTHS, ModelFiles

from peers.base import HERE, THIS_PYTHON, Engine, Rates, Service, first_token_job, job_words, last_json, named_rates

RUNS = HERE.parent / "engine_runs.py"


class Ours(Engine):
    name = "ours"
    device = "cpu"

    def version(self) -> str:
        return commit()

    def own_format(self, format: str) -> str | None:
        return format if format in WIDTHS else None

    def prepare(self, files: ModelFiles, format: str) -> Path:
        return files.gguf(format)

    def offline(self, model: Path, job: Job, variant: str) -> Rates:
        options = self._options(model, max(job.batches, default=1), job.longest)
        return named_rates(last_json(self.run([THIS_PYTHON, *job_words(RUNS, options, job)])), job)

    def first_token_command(self, model: Path) -> list[str]:
        return [THIS_PYTHON, *job_words(RUNS, self._options(model, 1, 128), first_token_job())]

    def serving(self, model: Path, service: Service) -> AbstractContextManager[str] | None:
        options = self._options(model, service.streams, service.length)
        options["enable_prefix_caching"] = service.caches_prefixes
        if (asked := service.speculation) is not None:
            draft = {} if asked.draft is None else {"model": str(asked.draft)}
            options["speculative_config"] = {
                "method": asked.method, "num_speculative_tokens": asked.num_drafts, **draft
            }  # fmt: skip
        return serving(options)

    def environment(self) -> dict[str, str]:
        store = {"NEURON_COMPILED_ARTIFACTS": str(self.home / "artifacts")}
        return {**os.environ, "PYTHONPATH": str(HERE.parents[1]), **store}

    def _options(self, model: Path, rows: int, length: int) -> dict[str, Any]:
        return {
            "model": str(model),
            "device": self.device,
            "max_num_seqs": rows,
            "max_model_len": length,
            "enable_prefix_caching": False,
        }
