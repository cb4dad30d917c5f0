"""aider: an answer, streamed and not, and an edit of a file."""

import importlib.metadata

from asked import KEY, MODEL, SAY, URL, report
from command import PLACE, command

QUIET = [
    "--no-git", "--yes-always", "--no-show-model-warnings", "--no-check-update", "--analytics-disable", "--no-pretty",
    "--no-show-release-notes", "--no-detect-urls", "--no-suggest-shell-commands",
]  # fmt: skip


def aider(*words: str) -> str:
    settings = {"OPENAI_API_BASE": f"{URL}/v1", "OPENAI_API_KEY": KEY}
    return command("bin/aider", "--model", f"openai/{MODEL}", *QUIET, *words, **settings)


def answer(*words: str) -> str:
    """Among all that aider prints, the line that was ordered."""
    text = SAY.removeprefix("SAY ")
    return next(line for line in aider(*words, "--message", SAY).splitlines() if line == text)


def edit() -> str:
    order = r"SAY here it is:\n\nweather.txt\n```\nOslo is cold\n```\n"
    (PLACE / "weather.txt").write_text("")
    aider("--edit-format", "whole", "--message", order, "weather.txt")
    return (PLACE / "weather.txt").read_text().strip()


report(
    importlib.metadata.version("aider-chat"),
    answer=lambda: answer("--no-stream"),
    answer_streamed=lambda: answer("--stream"),
    edit=edit,
)
