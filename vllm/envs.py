"""Every environment variable the package reads: name, type, default, one sentence. The only reader of os.environ.

`envs.NAME` reads the variable at each access, so tests and launchers can change it. A value that cannot be read as
the variable's type is an error that names the variable, the value and what would work.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class EnvVar:
    name: str
    parse: Callable[[str], Any]
    default: Any
    help: str


def _boolean(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered in ("1", "true", "yes", "on"):
        return True
    if lowered in ("", "0", "false", "no", "off"):
        return False
    raise ValueError("expected one of 1, true, yes, on, 0, false, no, off")


def _integers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.strip(" []").split(",") if part.strip()]
    except ValueError:
        raise ValueError("expected integers with commas between them, such as 128,512,2048") from None


def _gibibytes(text: str) -> float:
    size = float(text)
    if not 0 <= size < float("inf"):
        raise ValueError("expected a number of GiB, 0 or more")
    return size


def _one_of(*values: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in values:
            raise ValueError(f"expected one of {', '.join(values)}")
        return text

    return parse


_VARIABLES = [
    EnvVar("VLLM_LOGGING_LEVEL", str, "INFO", "Least severity that is logged."),
    EnvVar("VLLM_CONFIGURE_LOGGING", _boolean, True, "Whether the package configures its loggers at all."),
    EnvVar("VLLM_LOGGING_CONFIG_PATH", str, "", "A JSON file for logging.config.dictConfig, instead of the default."),
    EnvVar("VLLM_LOGGING_PREFIX", str, "", "Text put before each log line."),
    EnvVar("VLLM_NEURON_TARGET", str, "auto", "Device target: auto, neuronx, cpu or null."),
    EnvVar("VLLM_CPU_ISA", str, "auto", "Kernels of the cpu target: auto, avx512_bf16, avx512, avx2 or portable."),
    EnvVar(
        "VLLM_CPU_OMP_THREADS_BIND",
        str,
        "auto",
        "Processors the cpu target's threads are bound to, such as 0-3,8; auto: one a core; nobind: not bound.",
    ),
    EnvVar(
        "VLLM_CPU_KVCACHE_SPACE",
        _gibibytes,
        0.0,
        "Most GiB that the cpu target's KV cache may take, unless kv_cache_memory_bytes says it. 0: no bound.",
    ),
    EnvVar(
        "VLLM_NEURON_FRAMEWORK",
        str,
        "neuronx-distributed-inference",
        "Library behind the neuronx target; this is the only one supported.",
    ),
    EnvVar(
        "NEURON_COMPILED_ARTIFACTS",
        str,
        "",
        "An artifact to load, or the directory that artifacts are kept in. Default: beside the checkpoint.",
    ),
    EnvVar(
        "NEURON_ON_DEVICE_SAMPLING_DISABLED",
        _boolean,
        False,
        "Compile without on-device sampling: logits come back and the host samples.",
    ),
    EnvVar(
        "DISABLE_NEURON_CUSTOM_SCHEDULER",
        _boolean,
        False,
        "Ask for chunked prefill, as enable_chunked_prefill does.",
    ),
    EnvVar(
        "NEURON_CONTEXT_LENGTH_BUCKETS",
        _integers,
        [],
        "Buckets of context encoding, with commas between them, unless context_encoding_buckets is given.",
    ),
    EnvVar(
        "NEURON_TOKEN_GEN_BUCKETS",
        _integers,
        [],
        "Buckets of token generation, with commas between them, unless token_generation_buckets is given.",
    ),
    EnvVar("NEURON_LOGICAL_NC_CONFIG", int, 0, "Physical cores in a logical NeuronCore. Default: the platform's."),
    EnvVar("NEURON_RT_VIRTUAL_CORE_SIZE", int, 0, "The runtime's name of the same. Default: as compiled."),
    EnvVar(
        "NEURON_PLATFORM_TARGET_OVERRIDE",
        _one_of("", "inf2", "trn1", "trn2", "trn3"),
        "",
        "Platform to check and compile for. Default: this instance's, and on other machines any.",
    ),
    EnvVar("NEURON_RT_VISIBLE_CORES", str, "", "NeuronCores to use, such as 0-3,8. Default: NEURON_RT_NUM_CORES."),
    EnvVar("NEURON_RT_NUM_CORES", int, 0, "How many NeuronCores to use. Default: as many as the model takes."),
    EnvVar("NEURON_CC_FLAGS", str, "", "Flags for neuronx-cc; they are part of what an artifact is known by."),
    EnvVar("BASE_COMPILE_WORK_DIR", str, "", "Where compilations get work directories. Default: the temporary one."),
    EnvVar("VLLM_CACHE_ROOT", str, "~/.cache/vllm", "Where artifacts and hashes go that have no better place."),
    EnvVar("VLLM_NULL_STEP_MS", float, 0.0, "Milliseconds that a step of the null target takes."),
    EnvVar("VLLM_NULL_HANG_AFTER", int, 0, "Steps of the null target after which one never ends; 0: all end."),
    EnvVar("VLLM_SERVER_DEV_MODE", _boolean, False, "Serve what only developers need: POST /reset_prefix_cache."),
    EnvVar("VLLM_API_KEY", str, "", "Key that requests must bring, if --api-key gives none."),
    EnvVar(
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
        _one_of("grpc", "http/protobuf"),
        "grpc",
        "How traces are sent to --otlp-traces-endpoint: grpc or http/protobuf.",
    ),
    EnvVar("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", int, 5, "Seconds after which an idle connection is closed."),
    EnvVar(
        "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH",
        _boolean,
        False,
        "Answer 503 when the engine died, instead of exiting.",
    ),
    EnvVar("VLLM_CHAT_TEMPLATE_RENDER_TIMEOUT", int, 30, "Seconds a chat template may run for one request."),
    EnvVar(
        "VLLM_REGEX_COMPILATION_TIMEOUT_S",
        float,
        5.0,
        "Seconds that the constraint of a structured output (schema, regex, choice, grammar) may take to compile.",
    ),
    EnvVar(
        "VLLM_ENFORCE_STRICT_TOOL_CALLING",
        _boolean,
        True,
        "Hold calls to the schemas of tools that are `strict`, with tool_choice auto too.",
    ),
    EnvVar("VLLM_ENABLE_RESPONSES_API_STORE", _boolean, False, "Keep the responses of /v1/responses, in memory."),
    EnvVar("VLLM_RESPONSES_API_STORE_SIZE", int, 1024, "Most responses that are kept; the least recently used go."),
    EnvVar("VLLM_RESPONSES_API_STORE_MB", int, 256, "Most megabytes of responses that are kept."),
    EnvVar("VLLM_MAX_COMPLETION_PROMPTS", int, 1024, "Most prompts in one /v1/completions request."),
    EnvVar(
        "VLLM_MAX_PROMPT_LOGPROBS",
        int,
        256 << 10,
        "Most log-probabilities of prompt tokens that one request to the server may ask for.",
    ),
    EnvVar("VLLM_MAX_N_SEQUENCES", int, 16384, "Most outputs a request may ask for (n)."),
    EnvVar("VLLM_MAX_NUM_BAD_WORDS", int, 128, "Most bad words in one request, after tokenisation."),
    EnvVar("VLLM_ALLOW_LONG_MAX_MODEL_LEN", _boolean, False, "Allow max_model_len beyond what the model was made for."),
    EnvVar(
        "VLLM_RPC_BASE_PATH",
        str,
        "",
        "Directory under which sockets get a private one. Default: the temporary one, or /tmp if its name is too long.",
    ),
    EnvVar("VLLM_ENGINE_READY_TIMEOUT_S", int, 0, "Seconds an engine process may take to start. 0: no limit."),
    EnvVar(
        "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS", float, 300.0, "Seconds one step may take before the engine is held stuck."
    ),
    EnvVar("VLLM_FRONT_TIMEOUT_SECONDS", float, 30.0, "Seconds one of several API servers may stand still."),
    EnvVar("VLLM_LOG_STATS_INTERVAL", float, 10.0, "Seconds between two lines of statistics in the log."),
]

_SECRETS = frozenset({"VLLM_API_KEY"})
VARIABLES: dict[str, EnvVar] = {variable.name: variable for variable in _VARIABLES}


def of_children() -> dict[str, str]:
    """The environment for a process of ours, without what is the server's secret."""
    return {name: value for name, value in os.environ.items() if name not in _SECRETS}


def __getattr__(name: str) -> Any:
    if name not in VARIABLES:
        raise AttributeError(f"module 'vllm.envs' has no variable {name!r}")
    variable = VARIABLES[name]
    text = os.environ.get(name)
    if text is None:
        return variable.default
    try:
        return variable.parse(text)
    except ValueError as error:
        raise ValueError(f"environment variable {name}={text!r} cannot be used: {error}") from None
