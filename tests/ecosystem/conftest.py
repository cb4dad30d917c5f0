"""A server for clients of others; each test module is skipped where its client is not installed.

pip install lm-eval; test_load_generators.py says how its programs are found
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.process import ServerProcess, serve


@pytest.fixture(scope="module")
def server(tiny_llama: Path) -> Iterator[ServerProcess]:
    form = '{"disable_any_whitespace": true, "disable_additional_properties": true}'  # a random model never ends else
    words = ["--structured-outputs-config", form]
    words += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--max-logprobs", "20"]
    with serve(tiny_llama, "--max-model-len", "512", "--max-num-seqs", "8", *words) as running:
        yield running
