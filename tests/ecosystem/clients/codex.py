"""Codex CLI, as it comes from npm: an answer, its shell, and further turns with `exec resume`."""

import json
from typing import Any

from asked import CITIES, MODEL, SAY, URL, report, weather_line
from command import PLACE, command

CONFIG = f"""
model = "{MODEL}"
model_provider = "here"

[model_providers.here]
name = "here"
base_url = "{URL}/v1"
wire_api = "responses"
"""
(PLACE / ".codex").mkdir()
(PLACE / ".codex" / "config.toml").write_text(CONFIG)


def codex(*words: str) -> str:
    """The last message."""
    last = PLACE / "last.txt"
    flags = ["--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", "-o", str(last)]
    command("node_modules/.bin/codex", "exec", *words[:-1], *flags, words[-1])
    return last.read_text().strip()


def shell() -> Any:
    texts = []
    for i, city in enumerate(CITIES):
        arguments = json.dumps({"cmd": f"echo '{weather_line(city)}'"})
        resumed = ["resume", "--last"] if i else []
        texts.append(codex(*resumed, f"THINK It may rain. CALL exec_command {arguments}"))
    return {"texts": texts}


report(
    command("node_modules/.bin/codex", "--version").split()[-1],
    answer=lambda: codex(SAY),
    tools=shell,
)
