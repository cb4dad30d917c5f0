"""`vllm.core` decides without torch, numpy or transformers, and loads none of them."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
import vllm.core.scheduler, vllm.core.contract, vllm.core.outputs
print(sorted({"torch", "numpy", "transformers", "zmq", "fastapi"} & set(sys.modules)))
"""


def test_core_imports_nothing_heavy() -> None:
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
