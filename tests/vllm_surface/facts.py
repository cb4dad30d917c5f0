"""What a package named `vllm` offers, as names, types and defaults. It runs in vLLM's environment and in ours.

bodies: every request and response of the HTTP API, field by field. classes: those of parameters, outputs and errors.
options: every option of every command. callables: the parameters of public methods. members: public names of classes.
imports: which names can be imported. A type is written as the JSON that it stands for: "integer|null".

python tests/vllm_surface/facts.py      # prints JSON; needs nothing but the `vllm` that this interpreter imports
"""

from __future__ import annotations

import argparse
import ast
import collections.abc
import contextlib
import dataclasses
import enum
import importlib
import inspect
import json
import pkgutil
import re
import sys
import textwrap
import time
import types
import typing
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

import msgspec
import pydantic
import typing_extensions

_RANDOM = re.compile(r"-[0-9a-f]{8}-")
REQUIRED, ABSENT, MADE = "(required)", "(absent)", "(made)"
"""In place of a default: of what must be given, of what may be left out, of what differs from time to time."""

PROTOCOLS = re.compile(r"^vllm\.entrypoints\.(.*\.protocol(\..*)?|.*run_batch)$")
"""Modules whose classes are the bodies of the HTTP API."""

CLASSES = {
    "vllm.sampling_params": ("SamplingParams", "BeamSearchParams", "StructuredOutputsParams", "RequestOutputKind",
                             "SamplingType", "RepetitionDetectionParams"),
    "vllm.pooling_params": ("PoolingParams",),
    "vllm.outputs": ("RequestOutput", "CompletionOutput", "PoolingOutput", "PoolingRequestOutput", "EmbeddingOutput",
                     "EmbeddingRequestOutput", "ClassificationOutput", "ClassificationRequestOutput", "ScoringOutput",
                     "ScoringRequestOutput"),
    "vllm.beam_search | vllm.entrypoints.generate.beam_search.utils": ("BeamSearchSequence", "BeamSearchOutput"),
    "vllm.logprobs": ("Logprob", "FlatLogprobs"),
    "vllm.inputs": ("TextPrompt", "TokensPrompt", "EmbedsPrompt"),
    "vllm.lora.request": ("LoRARequest",),
    "vllm.v1.metrics.reader": ("Metric", "Counter", "Gauge", "Histogram", "Vector"),
    "vllm.v1.metrics.stats": ("RequestStateStats",),
    "vllm.engine.arg_utils": ("EngineArgs", "AsyncEngineArgs"),
    "vllm.entrypoints.llm": ("LLM",),
    "vllm.engine.llm_engine": ("LLMEngine",),
    "vllm.v1.engine.async_llm": ("AsyncLLM",),
    "vllm.exceptions": ("VLLMError", "VLLMClientError", "VLLMServerError", "VLLMValidationError", "VLLMNotFoundError",
                        "VLLMUnprocessableEntityError", "GenerationError", "QueueOverflowError",
                        "MaxQueuedTokensError"),
    "vllm.v1.engine.exceptions": ("EngineDeadError", "EngineGenerateError"),
}  # fmt: skip
"""Modules, or alternatives of one, and the public classes in them."""

BEHAVIOUR = ("LLM", "LLMEngine", "AsyncLLM")
"""Classes that do things: what their methods take is compared too."""

IMPORTS = {
    "vllm": ("__version__", "__version_tuple__", "LLM", "LLMEngine", "AsyncLLMEngine", "EngineArgs", "AsyncEngineArgs",
             "SamplingParams", "PoolingParams", "ModelRegistry", "PromptType", "TextPrompt", "TokensPrompt",
             "RequestOutput", "CompletionOutput", "PoolingOutput", "PoolingRequestOutput", "EmbeddingOutput",
             "EmbeddingRequestOutput", "ClassificationOutput", "ClassificationRequestOutput", "ScoringOutput",
             "ScoringRequestOutput", "initialize_ray_cluster"),
    "vllm.sampling_params": ("SamplingParams", "BeamSearchParams", "StructuredOutputsParams", "RequestOutputKind",
                             "SamplingType", "RepetitionDetectionParams"),
    "vllm.outputs": ("RequestOutput", "CompletionOutput", "PoolingRequestOutput", "EmbeddingRequestOutput"),
    "vllm.inputs": ("PromptType", "TextPrompt", "TokensPrompt", "EmbedsPrompt", "SingletonPrompt", "DataPrompt"),
    "vllm.engine.arg_utils": ("EngineArgs", "AsyncEngineArgs"),
    "vllm.engine.async_llm_engine": ("AsyncLLMEngine",),
    "vllm.engine.llm_engine": ("LLMEngine",),
    "vllm.engine.protocol": ("EngineClient",),
    "vllm.v1.engine.async_llm": ("AsyncLLM",),
    "vllm.v1.engine.llm_engine": ("LLMEngine",),
    "vllm.v1.engine.exceptions": ("EngineDeadError", "EngineGenerateError"),
    "vllm.v1.metrics.reader": ("Metric", "Counter", "Gauge", "Histogram", "Vector"),
    "vllm.v1.metrics.loggers": ("StatLoggerBase", "PrometheusStatLogger", "LoggingStatLogger"),
    "vllm.config": ("VllmConfig", "ModelConfig", "CacheConfig", "ParallelConfig", "SchedulerConfig", "LoRAConfig",
                    "SpeculativeConfig", "StructuredOutputsConfig", "ObservabilityConfig", "LoadConfig"),
    "vllm.exceptions": ("VLLMValidationError", "VLLMClientError", "VLLMError", "VLLMNotFoundError"),
    "vllm.logprobs": ("Logprob", "FlatLogprobs", "PromptLogprobs", "SampleLogprobs"),
    "vllm.logger": ("init_logger",),
    "vllm.lora.request": ("LoRARequest",),
    "vllm.usage.usage_lib": ("UsageContext",),
    "vllm.utils": ("random_uuid",),
    "vllm.utils.argparse_utils": ("FlexibleArgumentParser",),
    "vllm.tokenizers": ("get_tokenizer", "TokenizerLike"),
    "vllm.reasoning": ("ReasoningParser", "ReasoningParserManager"),
    "vllm.tool_parsers": ("ToolParser", "ToolParserManager"),
    "vllm.entrypoints.chat_utils": ("load_chat_template", "parse_chat_messages"),
    "vllm.entrypoints.openai.api_server": ("build_app", "init_app_state", "build_async_engine_client", "run_server",
                                           "setup_server", "run_server_worker"),
    "vllm.entrypoints.openai.cli_args": ("make_arg_parser", "validate_parsed_serve_args", "FrontendArgs"),
    "vllm.entrypoints.openai.chat_completion.protocol": ("ChatCompletionRequest", "ChatCompletionResponse"),
    "vllm.entrypoints.openai.chat_completion.serving": ("OpenAIServingChat",),
    "vllm.entrypoints.openai.completion.protocol": ("CompletionRequest", "CompletionResponse"),
    "vllm.entrypoints.openai.completion.serving": ("OpenAIServingCompletion",),
    "vllm.entrypoints.openai.responses.protocol": ("ResponsesRequest", "ResponsesResponse"),
    "vllm.entrypoints.openai.models.protocol": ("BaseModelPath", "LoRAModulePath"),
    "vllm.entrypoints.openai.models.serving": ("OpenAIServingModels",),
    "vllm.entrypoints.anthropic.protocol": ("AnthropicMessagesRequest", "AnthropicMessagesResponse"),
    "vllm.entrypoints.launchers.cli_args": ("make_arg_parser", "FrontendArgs"),
    "vllm.entrypoints.serve.engine.protocol": ("ErrorResponse", "ErrorInfo", "UsageInfo", "ModelCard", "ModelList"),
    "vllm.entrypoints.serve.tokenize.protocol": ("TokenizeRequest", "TokenizeResponse", "DetokenizeRequest"),
    "vllm.model_executor.models": ("ModelRegistry",),
    "vllm.platforms": ("current_platform",),
    "vllm.multimodal": ("MULTIMODAL_REGISTRY",),
    "vllm.benchmarks.serve": ("add_cli_args", "main"),
}  # fmt: skip
"""Names that programs of others import, by module: from vLLM's documentation and from what is built on it."""


def facts() -> dict[str, Any]:
    from vllm.version import __version__

    return {
        "version": __version__,
        "bodies": {cls.__name__: _fields(cls) for cls in _bodies()},
        "classes": {cls.__name__: _fields(cls) for cls in _classes() if cls.__name__ not in BEHAVIOUR},
        "options": _own_options({name: _options(parser) for name, parser in _parsers()}),
        "callables": dict(sorted(_callables())),
        "members": {cls.__name__: _members(cls) for cls in _classes() if cls.__name__ in BEHAVIOUR},
        "imports": {f"{module}:{name}": _has(module, name) for module, names in IMPORTS.items() for name in names},
    }


# Types, field by field.


def _bodies() -> Iterator[type]:
    """Every class of the HTTP API's bodies."""
    entrypoints = importlib.import_module("vllm.entrypoints")
    for found in pkgutil.walk_packages(entrypoints.__path__, "vllm.entrypoints.", onerror=lambda name: None):
        if not PROTOCOLS.match(found.name) or (found.name == "vllm.entrypoints.openai.run_batch" and _launches()):
            continue
        try:
            module = importlib.import_module(found.name)
        except ImportError as error:  # an optional package of one protocol, such as cohere's
            print(f"{found.name} cannot be imported: {error}", file=sys.stderr)
            continue
        for cls in vars(module).values():
            if inspect.isclass(cls) and cls.__module__ == module.__name__ and _is_record(cls):
                yield cls


def _launches() -> bool:
    """Whether this is a vLLM whose run_batch is a script that only warns that it has moved."""
    return importlib.util.find_spec("vllm.entrypoints.launchers") is not None


def _classes() -> Iterator[type]:
    for modules, names in CLASSES.items():
        for name in names:
            for module in modules.split(" | "):
                with contextlib.suppress(ImportError, AttributeError):
                    yield getattr(importlib.import_module(module), name)
                    break


def _is_record(cls: type) -> bool:
    return issubclass(cls, (pydantic.BaseModel, msgspec.Struct)) or dataclasses.is_dataclass(cls)


def _fields(cls: Any) -> dict[str, Any]:
    if issubclass(cls, enum.Enum):
        return {member.name: ["member", member.value] for member in cls}
    if issubclass(cls, BaseException):
        bases = [base.__name__ for base in cls.__mro__[1:] if base.__name__.startswith(("VLLM", "ValueError"))]
        return {f"({base})": ["base", None] for base in bases}
    if issubclass(cls, pydantic.BaseModel):
        known = {each.alias or name: _field(each.annotation, each) for name, each in cls.model_fields.items()}
        refused = {name: ["refused", None] for name in getattr(cls, "unsupported", ())}
        return known | refused | {name: ["no effect", None] for name in getattr(cls, "hints", ())}
    if issubclass(cls, msgspec.Struct):
        fields = {each.name: _field(each.type, each) for each in msgspec.structs.fields(cls)}
    elif typing_extensions.is_typeddict(cls):
        hints = _hints(cls)
        absent = {name: REQUIRED if name in cls.__required_keys__ else ABSENT for name in hints}
        fields = {name: [json_type(hint), absent[name]] for name, hint in hints.items()}
    elif dataclasses.is_dataclass(cls):
        hints = _hints(cls)
        fields = {each.name: _field(hints[each.name], each) for each in dataclasses.fields(cls)}
    else:
        fields = _attributes(cls.__init__)
    return {name: field for name, field in fields.items() if not name.startswith("_")}


class _UnknownType(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Any


class _Unknown(metaclass=_UnknownType):
    """What stands for a name that only type checkers import, and for all that is in it."""


def _hints(annotated: Any) -> dict[str, Any]:
    unknown: dict[str, Any] = {}
    while True:
        try:
            return typing_extensions.get_type_hints(annotated, localns=unknown or None)
        except NameError as error:
            unknown[error.name] = _Unknown


def _attributes(init: Any) -> dict[str, Any]:
    """Of a class that sets what it is given."""
    hints = _hints(init)
    return {name: [json_type(hints.get(name, Any)), default] for name, (_, default) in _parameters(init).items()}


def _field(hint: Any, each: Any) -> list[Any]:
    """[type, default]; an option that is known only by its name says so in place of the type."""
    foreign = each.metadata.get("foreign") if isinstance(each, dataclasses.Field) else None
    if foreign is not None:
        return ["refused" if foreign.refused else "no effect", plain(foreign.default)]
    return [json_type(hint), _default(each)]


def _default(each: Any) -> Any:
    """Of a field of any of the three kinds of classes."""
    if isinstance(each, pydantic.fields.FieldInfo) and each.is_required():
        return REQUIRED
    for absent in (dataclasses.MISSING, msgspec.NODEFAULT):
        if each.default is absent and each.default_factory in (absent, None):
            return REQUIRED
    if each.default_factory in (None, dataclasses.MISSING, msgspec.NODEFAULT):
        return plain(each.default)
    first = each.default_factory()
    near_now = isinstance(first, int) and abs(first - time.time()) < 60
    return MADE if near_now or plain(first) != plain(each.default_factory()) else plain(first)


def plain(value: Any) -> Any:
    """A default as JSON has it; what JSON has no form for by the name of its class."""
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, (str, bool, int, float, types.NoneType)):
        return value
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(entry) for entry in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    if isinstance(value, dict):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, PurePath):
        return str(value)
    if value is msgspec.UNSET:
        return ABSENT
    return f"<{getattr(value, '__name__', type(value).__name__)}>"


_KINDS: list[tuple[type, str]] = [
    (bool, "boolean"),
    (int, "integer"),
    (float, "number"),
    (str, "string"),
    (bytes, "string"),
    (PurePath, "string"),
    (collections.abc.Mapping, "object"),
    (collections.abc.Iterable, "array"),
]


def json_type(hint: Any) -> str:
    """The JSON that values of a type are written as: "string", "integer|null", "array", "object", "any"."""
    return "|".join(sorted(_kinds(hint))) or "any"


def _kinds(hint: Any) -> set[str]:
    if hint is None or hint is type(None):
        return {"null"}
    if hint is msgspec.UnsetType:
        return set()
    if isinstance(hint, typing.TypeAliasType if hasattr(typing, "TypeAliasType") else ()):
        return _kinds(hint.__value__)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return set().union(*map(_kinds, args))
    if origin in (typing.Annotated, typing.Required, typing.NotRequired, typing.ClassVar, typing.Final):
        return _kinds(args[0])
    if origin is typing.Literal:
        return set().union(*(_kinds(type(value)) for value in args))
    if isinstance(hint, typing.TypeVar):
        return _kinds(hint.__bound__) if hint.__bound__ else {"any"}
    return _kinds_of_class(hint if origin is None else origin)


def _kinds_of_class(cls: Any) -> set[str]:
    if not inspect.isclass(cls) or cls is object:
        return {"any"}
    if issubclass(cls, enum.Enum):
        return set().union(*(_kinds_of_class(type(member.value)) for member in cls))
    if typing.is_typeddict(cls) or _is_record(cls):
        return {"object"}
    return {next((kind for base, kind in _KINDS if issubclass(cls, base)), "any")}


# Commands.


def _parsers() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command's words, and its parser."""
    main = importlib.import_module("vllm.entrypoints.cli.main")
    if hasattr(main, "COMMANDS"):
        yield from _our_parsers(main)
        return
    sys.argv[1:] = ["bench"]  # its benchmarks are told only to who asks for one
    root = importlib.import_module("vllm.utils.argparse_utils").FlexibleArgumentParser()
    subparsers = root.add_subparsers(dest="subparser")
    for name in ("openai", "serve", "benchmark.main", "collect_env", "run_batch"):
        for command in importlib.import_module(f"vllm.entrypoints.cli.{name}").cmd_init():
            command.subparser_init(subparsers)
    yield from _nested("", subparsers)


def _own_options(commands: dict[str, Any]) -> dict[str, Any]:
    """Of commands other than `serve` those that it has not, or has otherwise: they share the engine's."""
    served = commands["serve"]
    others = {name: {k: v for k, v in options.items() if served.get(k) != v} for name, options in commands.items()}
    return {**others, "serve": served}


def _nested(prefix: str, subparsers: Any) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for name, parser in subparsers.choices.items():
        inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        for action in inner:
            yield from _nested(f"{prefix}{name} ", action)
        if not inner:
            yield prefix + name, parser


def _our_parsers(main: Any) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    bench = importlib.import_module("vllm.entrypoints.cli.bench")
    words = [[name] for name in main.COMMANDS if name not in ("bench", "neuron")]
    for command in [*words, *(["bench", name] for name in bench.COMMANDS)]:
        parser = _caught_parser(main.main, command)
        if parser is not None:
            yield " ".join(command), parser


def _caught_parser(main: Any, words: list[str]) -> argparse.ArgumentParser | None:
    """The parser that a command makes for itself, caught when it is about to read the command line."""

    class Caught(BaseException):
        pass

    def catch(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> Any:
        raise Caught(self)

    original = argparse.ArgumentParser.parse_known_args
    argparse.ArgumentParser.parse_known_args = catch  # type: ignore[method-assign, assignment]
    try:
        main(words)
    except Caught as caught:
        return caught.args[0]
    finally:
        argparse.ArgumentParser.parse_known_args = original  # type: ignore[method-assign]
    return None


def _options(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """By what an option sets: its names, what it takes, its default, its choices."""
    options = {}
    for action in parser._actions:
        if not isinstance(action, argparse._HelpAction):
            names = [name for name in action.option_strings if not name.startswith("--no-")]
            choices = sorted(map(str, action.choices)) if action.choices and action.nargs != 0 else None
            options[action.dest] = {
                "names": sorted(names, key=len),
                "type": _takes(action),
                "default": MADE if _RANDOM.search(str(action.default)) else plain(action.default),
                "choices": choices,
            }
    return options


def _takes(action: argparse.Action) -> str:
    """A flag takes nothing; an option that is known only by its name says so."""
    effect = (action.help or "").partition(":")[0]
    if effect in ("Refused", "No effect"):
        return effect.lower()
    if action.nargs == 0:
        return "flag"
    several = "several " if action.nargs in ("+", "*") else ""
    samples = {'{"a": 1}': "JSON", "12": "integer", "1.5": "number"}
    return several + next((kind for word, kind in samples.items() if _is_read(action.type, word)), "text")


def _is_read(read: Any, word: str) -> bool:
    """Whether it is read as the JSON that it is."""
    try:
        return bool(read(word) == json.loads(word) != word)
    except Exception:  # whatever a reader has against this word
        return False


# Methods.


def _callables() -> Iterator[tuple[str, dict[str, Any]]]:
    for cls in _classes():
        if cls.__name__ in BEHAVIOUR:
            for name, member in _public(cls):
                if callable(member):
                    yield f"{cls.__name__}.{name}", _parameters(member)
            yield f"{cls.__name__}.__init__", _parameters(cls.__init__)
    yield "SamplingParams.from_optional", _parameters(_class("SamplingParams").from_optional)
    yield "tokenizers.get_tokenizer", _parameters(importlib.import_module("vllm.tokenizers").get_tokenizer)


def _class(name: str) -> Any:
    return next(cls for cls in _classes() if cls.__name__ == name)


def _public(cls: Any) -> Iterator[tuple[str, Any]]:
    for name in sorted(dir(cls)):
        if not name.startswith("_"):
            yield (
                name,
                inspect.getattr_static(cls, name)
                if isinstance(inspect.getattr_static(cls, name), property)
                else getattr(cls, name),
            )


def _parameters(function: Any) -> dict[str, Any]:
    signature = inspect.signature(function)
    found: dict[str, Any] = {}
    for name, each in signature.parameters.items():
        if name in ("self", "cls"):
            continue
        if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
            found["*" if each.kind is each.VAR_POSITIONAL else "**"] = ["rest", None]
            continue
        kind = "keyword" if each.kind is each.KEYWORD_ONLY else f"place {len(found) + 1}"
        found[name] = [kind, REQUIRED if each.default is each.empty else plain(each.default)]
    return found


def _members(cls: type) -> dict[str, str]:
    """Public names of a class, those that its methods set among them, and what each is: how it is used."""
    sources = [inspect.getsource(base) for base in cls.__mro__ if base.__module__.startswith("vllm.")]
    nodes = (node for source in sources for node in ast.walk(ast.parse(textwrap.dedent(source))))
    targets = (node for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store))
    names = (node.attr for node in targets if isinstance(node.value, ast.Name) and node.value.id in ("self", "llm"))
    attributes = {name: "attribute" for name in names if not name.startswith("_")}
    return attributes | {name: _use(member) for name, member in _public(cls)}


def _use(member: Any) -> str:
    if inspect.isasyncgenfunction(member):
        return "async generator"
    if inspect.iscoroutinefunction(member):
        return "coroutine"
    return "method" if callable(member) else "attribute"


def _has(module: str, name: str) -> bool:
    try:
        return hasattr(importlib.import_module(module), name)
    except ImportError:
        return False


if __name__ == "__main__":
    print(json.dumps(facts(), indent=1, sort_keys=True, ensure_ascii=False))
