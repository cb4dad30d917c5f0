"""What schemathesis makes of our own OpenAPI document: no request is answered by a fault of the server's.

Bounded here; `make fuzz` asks for more. `python -m tests.security.test_schema URL EXAMPLES` fuzzes a running server.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.process import serve

EXAMPLES = 12


def fuzz(url: str, num_examples: int, report: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Status 0: every answer was a success or the client's fault."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--checks",
               "not_a_server_error", "--max-examples", str(num_examples), "--phases",
               "examples,coverage,fuzzing", "--seed", "1", "--generation-database", "none", "--no-color",
               "--suppress-health-check", "all", "--request-timeout", "60"]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=3600, check=False)


def test_own_document(tiny_llama: Path) -> None:
    pytest.importorskip("schemathesis")
    with serve(tiny_llama, "--max-model-len", "64", "--max-num-seqs", "8") as server:
        result = fuzz(server.url, EXAMPLES)
        assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
        assert server.get("/health").status_code == 200
        assert not [line for line in server.log if "ERROR" in line or "Traceback" in line]


if __name__ == "__main__":
    ended = fuzz(sys.argv[1], int(sys.argv[2]))
    print(ended.stdout, ended.stderr)
    sys.exit(ended.returncode)
