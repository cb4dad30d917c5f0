"""Clients of others, and an environment of its own for each: made where there is none, used again where there is."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_DRIVERS = Path(__file__).parent / "clients"


@dataclass(frozen=True)
class Client:
    """name: as the documentation has it. driver: a file in `clients/`. packages: what is installed for it.

    npm: packages of npm, with a Python driver or one of JavaScript; otherwise they are of PyPI.
    """

    name: str
    driver: str
    packages: tuple[str, ...]
    npm: bool = False

    @property
    def key(self) -> str:
        return Path(self.driver).stem.rstrip("_")

    def command(self, environment: Path, *words: str) -> list[str]:
        """What runs the driver."""
        program = "node" if self.driver.endswith(".mjs") else sys.executable
        if not self.npm:
            program = str(environment / "bin" / "python")
        return [program, str(_DRIVERS / self.driver), *words, str(environment)]

    def install(self, environment: Path) -> None:
        """Raises CalledProcessError if it cannot be installed."""
        done = environment / ".installed"
        if done.exists() and done.read_text().split() == list(self.packages):
            return
        environment.mkdir(parents=True, exist_ok=True)
        if self.npm:
            subprocess.run(
                ["npm", "install", "--no-audit", "--no-fund", "--silent", "--prefix", str(environment), *self.packages],
                check=True,
            )
        else:
            subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
            pip = [str(environment / "bin" / "pip"), "--disable-pip-version-check", "install", "-qq", *self.packages]
            subprocess.run(pip, check=True)
        done.write_text("\n".join(self.packages))


CLIENTS = [
    Client("Claude Code", "claude_code.py", ("@anthropic-ai/claude-code",), npm=True),
    Client("Codex CLI", "codex.py", ("@openai/codex",), npm=True),
    Client("OpenAI SDK", "openai_sdk.py", ("openai",)),
    Client("Anthropic SDK", "anthropic_sdk.py", ("anthropic",)),
    Client("OpenAI Agents SDK", "openai_agents.py", ("openai-agents",)),
    Client(
        "Vercel AI SDK",
        "vercel_ai.mjs",
        ("ai", "zod", "@ai-sdk/openai", "@ai-sdk/openai-compatible", "@ai-sdk/anthropic"),
        npm=True,
    ),
    Client("LangChain", "langchain_.py", ("langchain", "langchain-openai", "langchain-anthropic")),
    Client("LiteLLM", "litellm_.py", ("litellm",)),
    Client("pydantic-ai", "pydantic_ai_.py", ("pydantic-ai-slim[openai,anthropic]",)),
    Client("instructor", "instructor_.py", ("instructor",)),
    Client("llama-index", "llama_index_.py", ("llama-index-core", "llama-index-llms-openai-like")),
    Client("aider", "aider_.py", ("aider-chat",)),
]
