"""vLLM's facts against ours: what differs, and which differences `docs/migration.md` has no reason for.

python -m tests.vllm_surface.compare                                # against the facts in tests/data
python -m tests.vllm_surface.compare --vllm-python VENV/bin/python  # against that vLLM; with --write they are kept
python -m tests.vllm_surface.compare --vllm-url http://... --write  # answers of a vLLM server, started as --help says
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from tests.vllm_surface import facts, reasons, wire

KEPT = Path(__file__).resolve().parents[1] / "data" / "vllm_surface.json"
"""What vLLM offers: names, types and defaults, and the shapes of a running server's answers."""

COUNTERPARTS = {
    "AnthropicCountTokensRequest": "CountTokensRequest",
    "AnthropicCountTokensResponse": "CountTokensResponse",
    "AnthropicError": "MessagesError",
    "AnthropicErrorResponse": "MessagesErrorResponse",
    "AnthropicMessagesRequest": "MessagesRequest",
    "AnthropicMessagesResponse": "MessagesResponse",
    "AnthropicUsage": "MessageUsage",
    "BatchRequestInput": "BatchLine",
    "ChatCompletionResponseStreamChoice": "ChatChunkChoice",
    "ChatCompletionStreamResponse": "ChatChunk",
    "CompletionResponseStreamChoice": "CompletionChunkChoice",
    "CompletionStreamResponse": "CompletionChunk",
    "DeltaFunctionCall": "FunctionDelta",
    "DeltaMessage": "Delta",
    "DeltaToolCall": "ToolCallDelta",
    "PromptTokenUsageInfo": "PromptTokensDetails",
    "ToolCall": "ToolCallMessage",
}
"""Bodies whose class has another name here."""


BY_NAME_ONLY = ("refused", "no effect")
"""In place of a type: of fields and options that are known and not honoured."""
Facts = dict[str, Any]


class Difference(NamedTuple):
    """what: "field CompletionRequest.max_tokens", "option serve --seed", "answer chat: usage". None: not there."""

    what: str
    there: Any
    here: Any

    def __str__(self) -> str:
        return f"{self.what}: {_shown(self.there)} there, {_shown(self.here)} here"


def _shown(value: Any) -> str:
    return "absent" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def static_differences(theirs: Facts, ours: Facts) -> list[Difference]:
    """Of what can be read without running anything."""
    found = [*_bodies(theirs["bodies"], ours["bodies"]), *_classes(theirs["classes"], ours["classes"])]
    found += [*_options(theirs, ours), *_arguments(theirs, ours)]
    for cls, members in theirs["members"].items():
        found += _compared(f"member {cls}.", members, {k: v for k, v in ours["members"][cls].items() if k in members})
    here = {name for name, present in ours["imports"].items() if present}
    return found + [
        Difference(f"import {name}", "there", None)
        for name, there in theirs["imports"].items()
        if there and name not in here
    ]


def _compared(what: str, theirs: Facts, ours: Facts) -> list[Difference]:
    """What only we have changes nothing for who comes from there."""
    return [_told(what, name, there, ours.get(name)) for name, there in theirs.items() if there != ours.get(name)]


def _told(what: str, name: str, there: Any, here: Any) -> Difference:
    """What is known here by its name only has a kind of its own: its reason stands at it."""
    kind = here[0] if isinstance(here, list) else here.get("type") if isinstance(here, dict) else here
    if kind in BY_NAME_ONLY:
        return Difference(f"{kind}: {what}{name}", there, kind)
    return Difference(f"{what}{name}", there, here)


def _bodies(theirs: Facts, ours: Facts) -> list[Difference]:
    found = []
    for name, fields in theirs.items():
        here = ours.get(COUNTERPARTS.get(name, name))
        if here is None:
            found.append(Difference(f"type {name}", "there", None))
        else:
            sides = (fields, here) if name.endswith("Request") else (_of_answer(fields), _of_answer(here))
            found += _compared(f"field {name}.", *sides)
    return found


def _of_answer(fields: Facts) -> Facts:
    """The types alone: what a server leaves out or sends as null is seen in its answers."""
    return {name: [kind.replace("null|", "").replace("|null", "")] for name, (kind, _) in fields.items()}


def _classes(theirs: Facts, ours: Facts) -> list[Difference]:
    found = []
    for name, fields in theirs.items():
        here = ours.get(name)
        if here is None:
            found.append(Difference(f"type {name}", "there", None))
            continue
        if name == "AsyncEngineArgs":
            there = theirs["EngineArgs"]
            fields, here = ({k: side[k] for k in side if k not in there} for side in (fields, here))
            here = {k: v for k, v in here.items() if k not in ours["EngineArgs"]}
        found += _compared(f"field {name}.", fields, here)
    return found


def _options(theirs: Facts, ours: Facts) -> list[Difference]:
    """Whether an engine's argument is there at all is told once, as a field of `EngineArgs`."""
    engine = theirs["classes"]["EngineArgs"].keys()
    found = []
    for command, options in theirs["options"].items():
        if command not in ours["options"]:
            found.append(Difference(f"command {command}", "there", None))
            continue
        here = ours["options"][command]
        for name, option in options.items():
            is_honoured = name in here and here[name]["type"] not in BY_NAME_ONLY
            if is_honoured or name not in engine:
                found += _compared(f"option {command} ", {name: option}, here)
    return found


OPEN_ARGUMENTS = {"LLM.__init__": "EngineArgs", "SamplingParams.from_optional": "SamplingParams"}
"""Methods of ours that take what a class has as keyword arguments."""


def _arguments(theirs: Facts, ours: Facts) -> list[Difference]:
    """A method of ours may take more, and by place what vLLM takes by name only."""
    found = []
    for name, parameters in theirs["callables"].items():
        here = dict(ours["callables"].get(name, {}))
        if {"*", "**"} <= here.keys() or name not in ours["callables"]:
            continue
        if "**" in here:
            cls = ours["classes"].get(OPEN_ARGUMENTS.get(name, ""), {})
            here = {field: ["keyword", default] for field, (_, default) in cls.items()} | here
        for each in _compared(f"argument {name}.", parameters, {k: v for k, v in here.items() if k in parameters}):
            if each.here is None or each.there[1] != each.here[1] or each.there[0] != "keyword":
                found.append(each)
    return found


def wire_differences(theirs: Facts, ours: Facts) -> list[Difference]:
    """Of the answers of two running servers."""
    found = [Difference(f"route {name}", "there", None) for name in theirs["routes"] if name not in ours["routes"]]
    for case, there in theirs["answers"].items():
        here = ours["answers"][case]
        if there["status"] != here["status"]:
            found.append(Difference(f"answer {case}: (status)", there["status"], here["status"]))
        if len(there["shapes"]) != len(here["shapes"]):
            found.append(Difference(f"answer {case}: (events)", len(there["shapes"]), len(here["shapes"])))
        found += _shapes(case, there["shapes"], here["shapes"])
    return found


def _shapes(case: str, theirs: list[Any], ours: list[Any]) -> list[Difference]:
    found: dict[Difference, None] = {}
    for there, here in zip(theirs, ours, strict=False):
        if isinstance(there, str) or isinstance(here, str):
            if there != here:
                found[Difference(f"answer {case}: (form)", str(there), str(here))] = None
            continue
        for place in [*there, *(place for place in here if place not in there)]:
            if there.get(place) != here.get(place):
                found[Difference(f"answer {case}: {place}", there.get(place), here.get(place))] = None
    return list(found)


def kept() -> Facts:
    found: Facts = json.loads(KEPT.read_text())
    return found


def keep(facts_: Facts) -> None:
    KEPT.write_text(_compact(facts_) + "\n")


def _compact(value: Any, depth: int = 0) -> str:
    """JSON of few lines: what lies deep goes on one."""
    if isinstance(value, dict) and value and depth < 3:
        indent = " " * (depth + 1)
        lines = [f"{indent}{json.dumps(name)}: {_compact(entry, depth + 1)}" for name, entry in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{' ' * depth}}}"
    return json.dumps(value, ensure_ascii=False, sort_keys=depth > 3)


def facts_of(python: str) -> Facts:
    """Of the vLLM that another interpreter has."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VLLM_"))}
    with tempfile.TemporaryDirectory() as elsewhere:
        text = subprocess.check_output([python, facts.__file__], env=env, cwd=elsewhere, text=True)
    found: Facts = json.loads(text)
    return found


def wire_of(url: str) -> Facts:
    with httpx.Client(base_url=url, timeout=120) as client:
        return {"answers": wire.answers(client), "routes": wire.routes(client)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.epilog = f"A vLLM server's options: {' '.join(wire.SERVER_OPTIONS)}; its model: tests.tiny, family qwen3."
    parser.add_argument("--vllm-python", help="interpreter of an environment with vLLM")
    parser.add_argument("--vllm-url", help="a running vLLM server")
    parser.add_argument("--url", help="a running server of ours")
    parser.add_argument("--write", action="store_true", help=f"keep vLLM's facts in {KEPT.name}")
    parser.add_argument("--all", action="store_true", help="show differences with their reasons too")
    args = parser.parse_args()
    theirs = kept() if KEPT.exists() else {}
    if args.vllm_python:
        theirs |= facts_of(args.vllm_python)
    if args.vllm_url:
        theirs["wire"] = wire_of(args.vllm_url)
    if args.write:
        keep(theirs)
    found = static_differences(theirs, facts.facts())
    if args.url:
        found += wire_differences(theirs["wire"], wire_of(args.url))
    rows = reasons.rows()
    unexplained = [each for each in found if reasons.reason(each.what, rows) is None]
    for each in found if args.all else unexplained:
        print(each, f"({reasons.reason(each.what, rows)})" if args.all else "")
    print(f"{len(found)} differences, {len(unexplained)} of them without a reason", file=sys.stderr)
    return bool(unexplained)


if __name__ == "__main__":
    sys.exit(main())
