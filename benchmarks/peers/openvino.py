"""OpenVINO GenAI with continuous batching, on a model that optimum-intel exported from the Hugging Face form."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from engine_runs import Job
from model_files import WIDTHS, ModelFiles

from peers.base import HERE, Engine, Rates, Service, first_token_job, job_words, last_json, named_rates

RUNS = HERE.parent / "openvino_runs.py"
WEIGHTS = {4: "int4", 8: "int8", 16: "fp16"}
GROUP = 64
"""Values that share a 4-bit scale: the largest power of two that divides the rows of small models."""


class OpenVino(Engine):
    name = "openvino"

    def install(self) -> None:
        self.make_venv("openvino-genai", "optimum-intel[openvino]")

    def version(self) -> str:
        return f"openvino-genai {self.package_version('openvino-genai')}"

    def own_format(self, format: str) -> str | None:
        return WEIGHTS.get(WIDTHS.get(format, 0))

    def prepare(self, files: ModelFiles, format: str) -> Path:
        weights = self.own_format(format)
        directory = files.cache / f"openvino-{weights}"
        if not (directory / "openvino_tokenizer.xml").exists():
            words = ["--model", str(files.huggingface()), "--task", "text-generation-with-past"]
            groups = ["--group-size", str(GROUP), "--ratio", "1.0"] if weights == "int4" else []
            export = str(self.python.parent / "optimum-cli")
            self.run([export, "export", "openvino", *words, "--weight-format", str(weights), *groups, str(directory)])
        return directory

    def offline(self, model: Path, job: Job, variant: str) -> Rates:
        command = [str(self.python), *job_words(RUNS, {"model": str(model), "threads": self.threads}, job)]
        return named_rates(last_json(self.run(command)), job)

    def first_token_command(self, model: Path) -> list[str]:
        engine = {"model": str(model), "threads": self.threads}
        return [str(self.python), *job_words(RUNS, engine, first_token_job())]

    def serving(self, model: Path, service: Service) -> AbstractContextManager[str] | None:
        """Its server is another program, which is not on the Python Package Index."""
        return None
