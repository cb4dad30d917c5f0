"""Our server on the `null` target with a model that does as it is told, so that clients have something to check.

The last user's message may hold `SAY text`, `CALL name {JSON}`, or `THINK text` before either; the output is forced to
that through the grammar, and everything else is as with any model: template, tokens, engine, parsers, streams. After a
tool's result the model says "The tool said: RESULT". A request that says nothing of this is answered by the null
target's own random text, within the form that it asks for.

python -m tests.ecosystem.obedient DIRECTORY --port 8000
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from tests.tiny import make_checkpoint
from vllm.engine import async_llm
from vllm.entrypoints.openai import api_server
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams, StructuredOutputsParams

CONTEXT = 1 << 17
OPTIONS = [
    "--device", "null", "--served-model-name", "test-model", "--max-model-len", str(CONTEXT), "--max-num-seqs", "8",
    "--enable-auto-tool-choice",
    "--tool-call-parser", "hermes", "--reasoning-parser", "qwen3", "--max-logprobs", "20",
    "--structured-outputs-config", '{"disable_any_whitespace": true, "disable_additional_properties": true}',
]  # fmt: skip
TEMPLATE = """
{%- if tools %}<|im_start|>tools
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content or '' }}
{%- for call in message.tool_calls or [] %}
<tool_call>{{ call.function | tojson }}</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
_TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", re.DOTALL)
_CALL_END = "\n</tool_call>"
_ORDER = re.compile(r"(?:\bTHINK (?P<thought>[^\n]*?) )?(?:\bCALL (?P<name>\w+) (?=\{)|\bSAY (?P<text>[^\n]*))")


def ordered(prompt: str) -> str | None:
    """What the model is told to write, if anything."""
    turns = _TURN.findall(prompt)
    role, content = turns[-1] if turns else ("", "")
    if role == "tool":
        return f"The tool said: {' '.join(content.split())[:200]}"
    orders = list(_ORDER.finditer(content)) if role == "user" else []
    if not orders:
        return None
    order = orders[-1]
    thought = f"<think>\n{order['thought']}\n</think>\n\n" if order["thought"] else ""
    if order["name"] is None:
        return thought + order["text"].strip().replace("\\n", "\n")
    if not re.search(rf'"name": ?"{order["name"]}"', prompt[: prompt.find("<|im_end|>")]):
        return f"There is no tool {order['name']}."
    arguments, _ = json.JSONDecoder().raw_decode(content, order.end())
    call = {"name": order["name"], "arguments": arguments}
    return f"{thought}<tool_call>\n{json.dumps(call)}{_CALL_END}"


class ObedientLLM(async_llm.AsyncLLM):
    async def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **options: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        text = ordered(prompt.get("prompt") or self.get_tokenizer().decode(prompt["prompt_token_ids"]))
        if text is not None and not (text.endswith(_CALL_END) and forces_calls(sampling_params)):
            sampling_params = sampling_params.clone()
            sampling_params.structured_outputs = StructuredOutputsParams(choice=[text])
            sampling_params._reasoning_gate = None
        async for output in super().generate(prompt, sampling_params, request_id, **options):
            yield output


def forces_calls(params: SamplingParams) -> bool:
    """Calls that the request forces have a form of their own, which the null target fills by itself."""
    return params.structured_outputs is not None and params.structured_outputs.json is not None


def make_model(directory: Path) -> Path:
    make_checkpoint(directory, max_position_embeddings=CONTEXT)
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return directory


if __name__ == "__main__":
    async_llm.AsyncLLM = ObedientLLM  # type: ignore[misc]
    model = make_model(Path(sys.argv[1]))
    sys.exit(api_server.main(["--model", str(model), *OPTIONS, *sys.argv[2:]]))
