"""The reference of the server, made from the code, so that it cannot say anything else.

`python -m vllm.entrypoints.openai.reference_docs FILE` writes `docs/server_reference.md`.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.routing import Route

from vllm.config import LoRAConfig, ModelConfig, SpeculativeConfig, VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.engine.observe.metrics import EngineMetrics
from vllm.entrypoints.openai.app import build_app
from vllm.entrypoints.openai.cli_args import FrontendArgs, validate_args
from vllm.entrypoints.openai.foreign_args import FOREIGN_FRONTEND_OPTIONS
from vllm.entrypoints.openai.middleware.access import HTTP_REGISTRY
from vllm.entrypoints.openai.middleware.authentication import OPEN_PATHS
from vllm.entrypoints.openai.protocol import ChatCompletionRequest, CompletionRequest, ResponsesRequest
from vllm.entrypoints.openai.protocol.base import OpenAIBaseModel
from vllm.entrypoints.openai.protocol.foreign import HINTS, SAMPLERS
from vllm.entrypoints.openai.protocol.messages import MessagesRequest
from vllm.entrypoints.openai.protocol.sampling import DrawFields, SamplingFields
from vllm.entrypoints.openai.protocol.tokenization import (
    DetokenizeRequest,
    TokenizeChatRequest,
    TokenizeCompletionRequest,
)
from vllm.entrypoints.openai.routes import dev_router
from vllm.entrypoints.server.engine_life import LIFE_REGISTRY

_HEAD = """\
# Server reference

Made from the code. [The server](server.md) says how it behaves.
"""

_UNSUPPORTED_NOTE = "Known, and not available; a value that asks for nothing (null, or the default) passes.\n"
_HINTS_NOTE = "Without them the answer is the same: ignored, and logged once.\n"
_FOREIGN_NOTE = "Of other servers' samplers and options; each generating route refuses or ignores them so.\n"
_ALIASES_NOTE = "Names that other servers have for the same.\n"

_METRICS_NOTE = """\
At `/metrics`, in Prometheus form: counters have `_total` at their end, histograms `_bucket`, `_sum` and `_count`.
`vllm:lora_requests_info` needs `--enable-lora`, `vllm:spec_decode_*` need drafts.
"""
_HTTP_LABELS = {"http_requests": "handler, method, status", "http_request_duration_seconds": "handler, method"}

REFUSING: dict[str, type[OpenAIBaseModel]] = {
    "/v1/completions": CompletionRequest,
    "/v1/chat/completions": ChatCompletionRequest,
    "/v1/responses": ResponsesRequest,
    "/v1/messages": MessagesRequest,
}
FOREIGN_ROUTES = {
    "/v1/embeddings /v2/embed /pooling /classify /score /rerank": "Models here generate text; none pools.",
    "/v1/audio/transcriptions /v1/audio/translations /v1/realtime": "Models here read and write text alone.",
    "/v1/chat/completions/batch": "`vllm run-batch` answers files of requests.",
    "/v1/load_lora_adapter /v1/unload_lora_adapter": "Adapters are not loaded while serving.",
    "/sleep /wake_up /is_sleeping /pause /resume /is_paused": "Weights stay where they are: an artifact is mapped.",
    "/collective_rpc /server_info /reset_mm_cache /reset_encoder_cache": "No code or state of the engine is open to "
    "requests.",
    "/start_profile /stop_profile": "`vllm bench` and the metrics say where time goes.",
    "/inference/v1/generate /inference/v1/abort_requests": "`/v1/completions` takes and gives token ids.",
    "/scale_elastic_ep /is_scaling_elastic_ep /kv_event_sources": "A server is one replica.",
    "/generative_scoring /v1/systemone": "Use the routes above.",
    "/tokenizer_info": "The tokenizer lies beside the model.",
}


FOREIGN_METRICS = {
    "vllm:gpu_cache_usage_perc vllm:gpu_prefix_cache_queries vllm:gpu_prefix_cache_hits "
    "vllm:time_per_output_token_seconds": "Older names of `vllm:kv_cache_usage_perc`, `vllm:prefix_cache_*` and "
    "`vllm:inter_token_latency_seconds`.",
    "vllm:kv_block_lifetime_seconds vllm:kv_block_idle_before_evict_seconds vllm:kv_block_reuse_gap_seconds": "Blocks "
    "are not sampled: `vllm:prefix_cache_*` and `vllm:prompt_tokens_by_source` tell what the cache brings.",
    "vllm:num_requests_swapped vllm:cpu_cache_usage_perc": "A running sequence is never swapped out.",
    "vllm:estimated_flops_per_gpu_total vllm:estimated_read_bytes_per_gpu_total "
    "vllm:estimated_write_bytes_per_gpu_total": "Estimates; `vllm:bucket_tokens` counts what was computed.",
    "vllm:kv_offload_*": "`vllm:external_prefix_cache_*` count the KV store's part.",
    "vllm:tool_call_parser_invocations_total": "A call shows in the answer; a text that is none stays content.",
    "vllm:sleep_mode_* vllm:nixl_* vllm:mooncake_* vllm:websocket_* vllm:diffusion_*": "Of parts that are not here.",
}


def page() -> str:
    app = _app()
    pieces = [_HEAD, "## Routes\n", _table(["Route", "Methods", "Needs a key"], _routes(app))]
    pieces += [_other_routes(app)]
    pieces += ["## Options of the server\n", _table(["Option", "Default", "Meaning"], _options(FrontendArgs))]
    pieces += ["## Options of vLLM's server that are not here\n", _table(["Option", "Why"], _foreign_options())]
    pieces += ["## Options of the engine\n", _table(["Option", "Default", "Meaning"], _options(AsyncEngineArgs))]
    pieces += ["## Routes of vLLM's server that are not here\n", _table(["Route", "Why"], _foreign_of(FOREIGN_ROUTES))]
    pieces += ["## Metrics\n", _METRICS_NOTE, _table(["Metric", "Type", "Labels", "Meaning"], _metrics())]
    pieces += ["## Metrics of vLLM's that are not here\n", _table(["Metric", "Why"], _foreign_of(FOREIGN_METRICS))]
    pieces += ["## Fields of completions, chat and responses\n", _fields_table(DrawFields, ())]
    pieces += ["## Fields of completions and chat\n", _fields_table(SamplingFields, DrawFields.model_fields)]
    shared = SamplingFields.model_fields
    pieces += ["## Fields of `/v1/completions`\n", _fields_table(CompletionRequest, shared)]
    pieces += ["## Fields of `/v1/chat/completions`\n", _fields_table(ChatCompletionRequest, shared)]
    pieces += ["## Fields of `/v1/responses`\n", _fields_table(ResponsesRequest, DrawFields.model_fields)]
    pieces += ["## Fields of `/v1/messages`\n", _fields_table(MessagesRequest, ())]
    pieces += ["## Fields of `/tokenize`\n", "Of a text:\n", _fields_table(TokenizeCompletionRequest, ())]
    pieces += ["Of a chat:\n", _fields_table(TokenizeChatRequest, ())]
    pieces += ["## Fields of `/detokenize`\n", _fields_table(DetokenizeRequest, ())]
    pieces += [
        "## Fields of other servers\n",
        _FOREIGN_NOTE,
        _table(["Field", "What becomes of it"], _foreign_fields()),
    ]
    for path, cls in REFUSING.items():
        pieces += [f"## Fields that `{path}` refuses\n", _UNSUPPORTED_NOTE]
        pieces += [_table(["Field", "Why"], _unsupported(cls))]
        if hints := list(_hints(cls)):
            pieces += [f"## Fields that `{path}` ignores\n", _HINTS_NOTE, _table(["Field", "Why"], hints)]
        pieces += [f"## Other names that `{path}` takes\n", _ALIASES_NOTE]
        pieces += [_table(["Name", "Field"], _aliases(cls))]
    return "\n".join(pieces)


def _app() -> FastAPI:
    engine = vars(AsyncEngineArgs())
    args = argparse.Namespace(**{**engine, "model_tag": None, **dataclasses.asdict(FrontendArgs())})
    validate_args(args)
    return build_app(args)


def _routes(app: FastAPI) -> Iterator[list[str]]:
    for path, methods in app.openapi()["paths"].items():
        yield [f"`{path}`", ", ".join(method.upper() for method in methods), "no" if path in OPEN_PATHS else "yes"]


def _other_routes(app: FastAPI) -> str:
    """Those that the description of the API leaves out."""
    about = ", ".join(f"`{route.path}`" for route in app.routes if isinstance(route, Route))
    developers = ", ".join(f"`{route.path}`" for route in dev_router.routes if isinstance(route, Route))
    return (
        f"`/` is `/dashboard`. The API describes itself at {about}.\n"
        f"With `VLLM_SERVER_DEV_MODE=1` there is {developers}. "
        "Every path but those above needs a key, where keys are set.\n"
    )


def _options(cls: Any) -> Iterator[list[str]]:
    defaults = cls()
    for field in dataclasses.fields(cls):
        names = [f"`--{field.name.replace('_', '-')}`", *(f"`{name}`" for name in field.metadata.get("aliases", ()))]
        yield [", ".join(names), _code(getattr(defaults, field.name)), field.metadata["help"]]


def _foreign_options() -> Iterator[list[str]]:
    for name, option in FOREIGN_FRONTEND_OPTIONS.items():
        effect = "Refused" if option.refused else "No effect"
        yield [f"`--{name.replace('_', '-')}`", f"{effect}: {option.reason}."]


def _fields_table(cls: type[OpenAIBaseModel], without: Iterable[str]) -> str:
    rows = [
        [f"`{name}`", _code(field.get_default(call_default_factory=True)), field.description or ""]
        for name, field in cls.model_fields.items()
        if name not in without
    ]
    return _table(["Field", "Default", "Meaning"], rows)


def _foreign_of(absent: dict[str, str]) -> Iterator[list[str]]:
    for names, reason in absent.items():
        yield [", ".join(f"`{name}`" for name in names.split()), reason]


def _metrics() -> Iterator[list[str]]:
    """Of an engine with all that has metrics of its own, then of HTTP and of the process."""
    model = ModelConfig(max_model_len=2048)
    drafts = SpeculativeConfig(method="ngram", num_speculative_tokens=1)
    config = VllmConfig(model_config=model, lora_config=LoRAConfig(enable_lora=True), speculative_config=drafts)
    for family in EngineMetrics(config, {}).families:
        yield [f"`{family.name}`", family.kind, ", ".join(family.labels), family.text]
    for registry in (HTTP_REGISTRY, LIFE_REGISTRY):
        for each in registry.collect():
            if not each.name.startswith("python_gc"):
                yield [f"`{each.name}`", each.type, _HTTP_LABELS.get(each.name, ""), each.documentation]


def _unsupported(cls: type[OpenAIBaseModel]) -> Iterator[list[str]]:
    for name, (reason, _) in sorted(cls.unsupported.items()):
        if name not in SAMPLERS:
            yield [f"`{name}`", reason]


def _hints(cls: type[OpenAIBaseModel]) -> Iterator[list[str]]:
    for name, reason in sorted(cls.hints.items()):
        if name not in HINTS:
            yield [f"`{name}`", reason]


def _foreign_fields() -> Iterator[list[str]]:
    for name, (reason, _) in sorted(SAMPLERS.items()):
        yield [f"`{name}`", f"refused: {reason}"]
    for name, reason in sorted(HINTS.items()):
        yield [f"`{name}`", f"ignored: {reason}"]


def _aliases(cls: type[OpenAIBaseModel]) -> Iterator[list[str]]:
    for name, alias in sorted(cls.aliases.items()):
        yield [f"`{name}`", f"`{alias.field}`"]


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _code(value: Any) -> str:
    return "" if value in (None, "", [], {}) or "Undefined" in str(value) else f"`{value}`"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
