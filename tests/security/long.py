"""Fuzzing for as long as told: `python -m tests.security.long [SECONDS [SEED]]`, which `make fuzz` runs.

A server of a tiny model on the `null` target, with tools and reasoning switched on and the store of responses too,
gets random requests for so many seconds, then large bodies for as long, and then requests that schemathesis makes.
Status 1 and the requests, if one of them was answered by a fault of the server's, held up others or took too much
memory, or if the server does not stand at the end.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

from tests.security import fuzzer, pressure
from tests.security.test_schema import fuzz
from tests.server.process import serve
from tests.tiny import make_checkpoint

WORDS = ("--max-model-len", "256", "--max-num-seqs", "8", "--enable-auto-tool-choice", "--tool-call-parser", "hermes",
         "--reasoning-parser", "qwen3")  # fmt: skip
_EXAMPLES_A_SECOND = 2


def main(seconds: float = 60, seed: int = int(time.time())) -> int:
    with tempfile.TemporaryDirectory() as directory:
        model = make_checkpoint(Path(directory) / "model")
        env = {"VLLM_ENABLE_RESPONSES_API_STORE": "1", "VLLM_NULL_STEP_MS": "2"}
        with serve(model, *WORDS, env=env) as server:
            if status := asyncio.run(fuzzer.main(server.url, seconds, seed)):
                return status
            if status := pressure.press(server.url, server.process.pid, seconds, seed):
                return status
            ended = fuzz(server.url, max(10, int(seconds * _EXAMPLES_A_SECOND)))
            print(ended.stdout)
            faults = [line for line in server.log if "ERROR" in line or "Traceback" in line]
            print("".join(faults))
            is_well = server.get("/health").status_code == 200 and not faults
            return ended.returncode or int(not is_well)


if __name__ == "__main__":
    sys.exit(main(*map(float, sys.argv[1:2]), *map(int, sys.argv[2:3])))
