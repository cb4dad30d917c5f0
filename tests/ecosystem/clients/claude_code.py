"""Claude Code, as it comes from npm: an answer, a stream of events, its shell over several turns of one session."""

import json
from typing import Any

from asked import CITIES, KEY, MODEL, SAY, URL, report, weather_line
from command import command

SETTINGS = {
    "ANTHROPIC_BASE_URL": URL,
    "ANTHROPIC_API_KEY": KEY,
    "ANTHROPIC_MODEL": MODEL,
    "ANTHROPIC_SMALL_FAST_MODEL": MODEL,
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_AUTOUPDATER": "1",
}


def claude(*words: str) -> str:
    return command("node_modules/.bin/claude", "-p", *words, **SETTINGS)


def answer() -> str:
    return claude(SAY).strip()


def stream() -> list[str]:
    lines = claude(SAY, "--output-format", "stream-json", "--verbose", "--include-partial-messages").splitlines()
    events = [json.loads(line).get("event", {}) for line in lines if line.startswith("{")]
    return [event["delta"].get("text", "") for event in events if event.get("type") == "content_block_delta"]


def shell() -> Any:
    texts = []
    for i, city in enumerate(CITIES):
        arguments = json.dumps({"command": f"echo '{weather_line(city)}'", "description": "Tell the weather"})
        resumed = ["--continue"] if i else []
        texts.append(claude(f"CALL Bash {arguments}", "--allowedTools", "Bash", *resumed).strip())
    return {"texts": texts}


report(claude("--version").split()[0], answer=answer, stream=stream, tools=shell)
