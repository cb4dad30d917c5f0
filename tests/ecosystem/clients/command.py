"""Clients that are programs: run in a directory and a home of their own, with nothing of this machine's settings."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ENVIRONMENT = Path(sys.argv[3])
"""Where the client is installed."""
PLACE = Path(tempfile.mkdtemp(prefix="client-"))
SECONDS = 240


def command(program: str, *words: str, **env: str) -> str:
    """What it prints. Raises RuntimeError with what it complained of."""
    own = {"HOME": str(PLACE), "PATH": os.environ["PATH"], "TERM": "dumb", "LANG": "C.UTF-8", **env}
    done = subprocess.run(
        [str(ENVIRONMENT / program), *words],
        cwd=PLACE,
        env=own,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    if done.returncode:
        raise RuntimeError(f"status {done.returncode}: {done.stdout[-2000:]} {done.stderr[-2000:]}")
    return done.stdout
