"""What users may set: `EngineArgs`, flat, for keyword arguments and for the command line.

Its fields, their defaults and help texts are those of the dataclasses in `config`; nothing is written twice.
`create_engine_config` turns the arguments into a resolved `VllmConfig`: it opens the checkpoint, derives what follows
from it, and asks the platform.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from vllm import envs
from vllm.checkpoint import Checkpoint, CheckpointError, context_length, normalise_config, open_checkpoint
from vllm.checkpoint.files import read_json
from vllm.checkpoint.generation import GENERATION_CONFIG, generation_config_faults
from vllm.checkpoint.nested_config import with_overrides
from vllm.checkpoint.tokenizer import check_same_tokens
from vllm.config import (
    CacheConfig,
    LoRAConfig,
    ModelConfig,
    NeuronOptions,
    ObservabilityConfig,
    ParallelConfig,
    SchedulerConfig,
    SpeculativeOptions,
    VllmConfig,
)
from vllm.engine.foreign_args import FOREIGN_OPTIONS, ForeignOption, words_of
from vllm.engine.structured_outputs.defaults import OutputDefaults
from vllm.engine.text.image_limits import most_images, parse_limits
from vllm.engine.text.input_processor import default_sampling_params
from vllm.logger import init_logger
from vllm.sampling_params import SamplingParams
from vllm.settings import resolve as platform
from vllm.settings.faults import NOTHING, Faults
from vllm.settings.options import EXAMPLE, human_int, merged_override, parse_json_option
from vllm.settings.speculation import draft_source

logger = init_logger(__name__)

OpenCheckpoint = Callable[..., Checkpoint]

SECTIONS: dict[str, type] = {
    "model_config": ModelConfig,
    "cache_config": CacheConfig,
    "scheduler_config": SchedulerConfig,
    "parallel_config": ParallelConfig,
    "lora_config": LoRAConfig,
    "neuron_options": NeuronOptions,
    "speculative_options": SpeculativeOptions,
    "observability_config": ObservabilityConfig,
}
"""Field of `VllmConfig` -> the dataclass in it. Their fields with a help text are options."""

_NO_EFFECT = {
    "enforce_eager": "programs are always compiled",
}
_AT_LEAST = {
    "stream_interval": 1,
    "max_consecutive_prefills": 1,
    "max_num_queued_reqs": 0,
    "max_num_queued_tokens": 0,
    "max_logprobs": -1,
}


def user_fields(cls: type) -> Iterator[Field[Any]]:
    """The fields of a config class that users set."""
    return (each for each in dataclasses.fields(cls) if "help" in each.metadata)


def _option_specs() -> Iterator[tuple[str, Any, Any]]:
    """(name, type, field) of every option, those of vLLM's own at the end."""
    for cls in (*SECTIONS.values(), VllmConfig):
        hints = typing.get_type_hints(cls)
        for each in user_fields(cls):
            yield each.name, hints[each.name], _copied(each)
    for name, option in FOREIGN_OPTIONS.items():
        effect = "Refused" if option.refused else "No effect"
        help = option.reason if option.hf_override else f"{effect}: {option.reason}"
        metadata = {"help": f"{help}.", "foreign": option, **({"type": "json"} if option.type is dict else {})}
        yield name, Any, dataclasses.field(default_factory=partial(copy.copy, option.default), metadata=metadata)


def _copied(each: Field[Any]) -> Any:
    if each.default_factory is not MISSING:
        return dataclasses.field(default_factory=each.default_factory, metadata=each.metadata)
    return dataclasses.field(default=each.default, metadata=each.metadata)


_Options: Any = dataclasses.make_dataclass("_Options", list(_option_specs()))


@dataclass
class EngineArgs(_Options):  # type: ignore[misc]
    """Arguments of the engine. An unknown keyword is a TypeError that names the nearest known one."""

    def __new__(cls, *args: Any, **kwargs: Any) -> EngineArgs:
        known = {each.name for each in dataclasses.fields(cls)}
        for name in kwargs:
            if name not in known:
                raise TypeError(_unknown_argument(cls.__name__, name, known))
        return typing.cast(EngineArgs, super().__new__(cls))

    @classmethod
    def add_cli_args(cls, parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        """Add every option to `parser`, one group for each section of the config."""
        hints = typing.get_type_hints(cls)
        titles = {each.name: section.__name__ for section in SECTIONS.values() for each in user_fields(section)}
        groups: dict[str, Any] = {}
        for each in dataclasses.fields(cls):
            title = titles.get(
                each.name, "Known options of no use here" if "foreign" in each.metadata else cls.__name__
            )
            if title not in groups:
                groups[title] = parser.add_argument_group(title)
            add_option(groups[title], each, hints[each.name])
        return parser

    @classmethod
    def from_cli_args(cls, args: argparse.Namespace) -> EngineArgs:
        names = (each.name for each in dataclasses.fields(cls))
        return cls(**{name: getattr(args, name) for name in names if hasattr(args, name)})

    def create_engine_config(self, usage_context: Any = None, headless: bool = False) -> VllmConfig:
        """The resolved configuration. Raises ValueError (CheckpointError, NeuronConfigError) with what would work.

        usage_context, headless: accepted as vLLM's callers give them; there is no usage report and one kind of engine.
        """
        faults = Faults()
        return platform.resolve(self.examined_config(faults), faults)

    def examined_config(
        self,
        faults: Faults,
        checkpoint: Checkpoint | None = None,
        open_draft: OpenCheckpoint = open_checkpoint,
    ) -> VllmConfig:
        """The configuration before the platform resolves it; what is wrong so far is added to `faults`.

        Every door begins here, so that each tells the same, and all of it at once. Options at fault hold their
        defaults. checkpoint: where it is open already. open_draft: opens the draft's, if one drafts, as
        `open_checkpoint` does. Raises CheckpointError where there is no checkpoint to go on with.
        """
        values = self._examined_values(faults)
        return _complete(_build_config(values), checkpoint or _opened(values, faults), open_draft, faults)

    def _examined_values(self, faults: Faults) -> dict[str, Any]:
        """Every option's value, brought to its type and checked against its choices."""
        hints = typing.get_type_hints(type(self))
        values = {}
        for each in dataclasses.fields(self):
            try:
                values[each.name] = _coerced(each, hints[each.name], getattr(self, each.name))
                self._note_option_of_no_use(each, values[each.name])
            except ValueError as error:
                faults.unreadable(each.name, NOTHING, str(error).removeprefix(f"{each.name}: "))
                values[each.name] = each.default_factory() if each.default_factory is not MISSING else each.default
        _take_entries(values, faults)
        return values

    def _note_option_of_no_use(self, each: Field[Any], value: Any) -> None:
        foreign = each.metadata.get("foreign")
        if isinstance(foreign, ForeignOption):
            if not foreign.asks_for_nothing(value) and not foreign.hf_override:
                _refuse_or_note(each.name, value, foreign.reason, foreign.refused)
        elif each.name in _NO_EFFECT and value != each.default:
            _refuse_or_note(each.name, value, _NO_EFFECT[each.name], refused=False)
        elif each.name == "structured_outputs_config":
            OutputDefaults.parse(value)
        elif each.name == "limit_mm_per_prompt":
            most_images(value)


@dataclass
class AsyncEngineArgs(EngineArgs):
    """`EngineArgs`, and what concerns an engine that serves."""

    enable_log_requests: bool = dataclasses.field(
        default=False, metadata={"help": "Log each request: its id, its length and its sampling parameters."}
    )


def nearest_argument(name: str) -> str | None:
    """The option that `name` is most like, if any is."""
    known = [each.name for each in dataclasses.fields(EngineArgs)]
    return next(iter(difflib.get_close_matches(name, known, n=1)), None)


def _unknown_argument(what: str, name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"{what} got an unknown argument {name!r}" + (f"; did you mean {close[0]!r}?" if close else "")


def _take_entries(values: dict[str, Any], faults: Faults) -> None:
    """Options that name an entry of config.json become `hf_overrides`."""
    entries = dict(values["hf_overrides"])
    for name, option in FOREIGN_OPTIONS.items():
        if not option.hf_override or (value := values[name]) is None:
            continue
        if name in entries and entries[name] != value:
            faults.unreadable(name, value, f"hf_overrides says {entries[name]!r}", "Give it once")
            continue
        entries[name] = value
        faults.note(f"{name}={value!r} is taken as hf_overrides={{{name!r}: {value!r}}}")
    values["hf_overrides"] = entries


def _refuse_or_note(name: str, value: Any, reason: str, refused: bool) -> None:
    if refused:
        raise ValueError(f"{name}={value!r} is not supported: {reason}")
    logger.warning("%s=%r has no effect: %s", name, value, reason)


# The command line.


def add_option(group: Any, each: Field[Any], hint: Any) -> None:
    metadata = dict(each.metadata)
    foreign = metadata.pop("foreign", None)
    default = each.default_factory() if each.default_factory is not MISSING else each.default
    example, kind = metadata.pop("example", None), metadata.pop("type", None)
    is_path = metadata.pop("path", False)
    names = [*words_of(each.name), *metadata.pop("aliases", ())]
    kwargs: dict[str, Any] = {"dest": each.name, "default": default, "help": metadata.pop("help").replace("%", "%%")}
    if foreign is not None:
        kwargs |= foreign.argument
    elif _is_flag(hint):
        kwargs["action"] = argparse.BooleanOptionalAction
    else:
        kwargs["type"] = in_home if is_path else _reader(kind, example, _plain_type(hint))
        kwargs |= metadata
    group.add_argument(*names, **kwargs)


def _is_flag(hint: Any) -> bool:
    return bool in (hint, *typing.get_args(hint)) and int not in typing.get_args(hint)


def _plain_type(hint: Any) -> Any:
    """What reads one word: int, float or str."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    return str if typing.get_origin(hint) is not None or hint is Any else hint


def _argument_type(read: Callable[[str], Any]) -> Callable[[str], Any]:
    def read_argument(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read_argument


def _count(text: str) -> int | None:
    """A count; "auto" and "-1" leave it open."""
    return None if text.strip() in ("auto", "-1") else human_int(text)


_MAPPINGS = ("json", "limits")


def _reader(kind: str | None, example: str | None, plain: Any) -> Any:
    """What reads an option's word."""
    if kind in _MAPPINGS:
        return _argument_type(lambda text: _mapping(text, kind, example))
    return _argument_type(_count) if kind == "human_int" else plain


def _mapping(text: str, kind: str, example: str | None) -> Any:
    return parse_limits(text) if kind == "limits" else parse_json_option(text, example or EXAMPLE)


# Keyword arguments.


def in_home(path: str) -> str:
    """The path with a `~` at its beginning as the user's directory."""
    return str(Path(path).expanduser()) if path.startswith("~") else path


def _coerced(each: Field[Any], hint: Any, value: Any) -> Any:
    """The value as the config wants it. Raises ValueError that says what is wrong with it."""
    kind = each.metadata.get("type")
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, str) and kind in _MAPPINGS:
        value = _mapping(value, kind, each.metadata.get("example"))
    elif isinstance(value, str) and each.metadata.get("path"):
        value = in_home(value)
    elif isinstance(value, str) and kind == "human_int":
        value = _count(value)
    elif isinstance(value, str) and list in {typing.get_origin(arg) for arg in (hint, *typing.get_args(hint))}:
        value = [value]
    elif value == -1 and kind == "human_int":
        value = None
    elif each.name == "dtype" and not isinstance(value, str):
        value = str(value).removeprefix("torch.")
    if value is None and each.default_factory is not MISSING:
        value = each.default_factory()
    try:
        checked = msgspec.convert(value, hint)
    except msgspec.ValidationError as error:
        raise ValueError(f"{each.name}={value!r} cannot be used: {error}") from None
    _check_choice(each, checked)
    least = _AT_LEAST.get(each.name)
    if least is not None and checked is not None and checked < least:
        raise ValueError(f"{each.name}={checked} cannot be used: it must be at least {least}")
    return checked


def _check_choice(each: Field[Any], value: Any) -> None:
    choices = each.metadata.get("choices")
    if choices is None or value is None or value in choices:
        return
    close = difflib.get_close_matches(str(value), choices, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(choices)}"
    raise ValueError(f"{each.name}={value!r} is not known; {hint}")


# The config.


def _build_config(values: dict[str, Any]) -> VllmConfig:
    def part(cls: type) -> dict[str, Any]:
        return {each.name: values[each.name] for each in user_fields(cls)}

    sections = {name: cls(**part(cls)) for name, cls in SECTIONS.items()}
    return VllmConfig(**sections, **part(VllmConfig))


def _opened(values: dict[str, Any], faults: Faults) -> Checkpoint:
    """The checkpoint. Raises CheckpointError, or NeuronConfigError where other options are at fault too."""
    names = {"revision": "revision", "download_dir": "download_dir", "token": "hf_token", "load_format": "load_format"}
    try:
        return open_checkpoint(values["model"], **{name: values[option] for name, option in names.items()})
    except CheckpointError as error:
        if faults:
            faults.add("model", values["model"], str(error))
            faults.raise_if_any("the configuration")
        raise


def _complete(config: VllmConfig, checkpoint: Checkpoint, open_draft: OpenCheckpoint, faults: Faults) -> VllmConfig:
    return config.replace(
        model_config=_complete_model_config(config, checkpoint, faults),
        speculative_options=_complete_speculation(config, checkpoint, open_draft, faults),
    )


def _complete_speculation(
    config: VllmConfig, target: Checkpoint, open_draft: OpenCheckpoint, faults: Faults
) -> SpeculativeOptions:
    """What follows from the draft's checkpoint, if one drafts; its tokenizer must be the target's."""
    options, model = config.speculative_options, config.model_config
    source = draft_source(options)
    if source is None:
        return options
    name, revision = source
    load_format = "dummy" if model.load_format == "dummy" else "auto"
    try:
        draft = open_draft(
            name, revision=revision, download_dir=model.download_dir, token=model.hf_token, load_format=load_format
        )
        check_same_tokens(target, draft)
    except CheckpointError as error:
        faults.unreadable("speculative_config", NOTHING, str(error))
        return SpeculativeOptions()
    return dataclasses.replace(options, draft_path=str(draft.path), draft_hf_config=draft.config)


def _complete_model_config(config: VllmConfig, checkpoint: Checkpoint, faults: Faults) -> ModelConfig:
    """What follows from the checkpoint."""
    model = config.model_config
    hf_config = checkpoint.config
    if model.hf_overrides:
        try:
            hf_config = normalise_config(with_overrides(hf_config, model.hf_overrides))
        except CheckpointError as error:
            faults.unreadable("hf_overrides", model.hf_overrides, str(error))
    return dataclasses.replace(
        model,
        model_path=str(checkpoint.path),
        served_model_name=model.served_model_name or [model.model],
        hf_config=hf_config,
        hf_generation_config=_generation_config(model, checkpoint, faults),
        max_model_len=_max_model_len(config, hf_config, faults),
        chat_template=_chat_template(model.chat_template, faults),
    )


def _max_model_len(config: VllmConfig, hf_config: dict[str, Any], faults: Faults) -> int | None:
    """The length asked for, checked against the model's, or the model's. None where the Neuron config says it.

    Where it cannot be had: the nearest that can, so that the rest is judged by a length.
    """
    asked, longest = config.model_config.max_model_len, context_length(hf_config)
    if asked is None:
        in_neuron_config = merged_override(config.neuron_options, Faults()).get("seq_len")
        asked = in_neuron_config if isinstance(in_neuron_config, int) else None
        if asked is None:
            return longest
        if longest is None or asked <= longest or envs.VLLM_ALLOW_LONG_MAX_MODEL_LEN:
            return None
    if asked < 1:
        faults.unreadable("max_model_len", asked, "leaves no room for a token", "Use at least 1, or auto")
        return longest
    if longest is not None and asked > longest and not envs.VLLM_ALLOW_LONG_MAX_MODEL_LEN:
        why = (
            f"more than the {longest} tokens that the model was made for (its config's max_position_embeddings "
            "and rope scaling)"
        )
        fix = "Lower it, or set VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 if you know that the model bears it"
        faults.unreadable("max_model_len", asked, why, fix)
        return longest
    return asked


def _generation_config(model: ModelConfig, checkpoint: Checkpoint, faults: Faults) -> dict[str, Any]:
    """Default sampling parameters and EOS tokens. "vllm" takes only the latter, which still end an output.

    Values that no request could use are faults.
    """
    origin = checkpoint.path if checkpoint.gguf else checkpoint.path / GENERATION_CONFIG
    given = checkpoint.generation_config
    if model.generation_config == "vllm":
        given = {key: value for key, value in given.items() if key == "eos_token_id"}
    elif model.generation_config != "auto":
        path = Path(model.generation_config)
        origin = path / GENERATION_CONFIG if path.is_dir() else path
        if not origin.is_file():
            why = f"it is neither auto, vllm, nor a directory with a {GENERATION_CONFIG}"
            faults.add("generation_config", model.generation_config, why)
            return dict(model.override_generation_config)
        given = read_json(origin)
    given = {**given, **model.override_generation_config}
    wrong = list(generation_config_faults(given))
    if not wrong:
        try:
            SamplingParams(**default_sampling_params(given))
        except ValueError as error:
            wrong = [str(error).rstrip(".")]
    if wrong:
        fix = "Correct it; --generation-config vllm leaves its sampling parameters out"
        faults.add("generation_config", NOTHING, f"{origin} cannot be used: {'; '.join(wrong)}", fix)
        return {}
    return given


def _chat_template(given: str | None, faults: Faults) -> str | None:
    """The text of a template that is given as such or as a file."""
    if given is None or "{" in given or "\n" in given:
        return given
    path = Path(given)
    if not path.is_file():
        faults.add("chat_template", given, "it is neither a file nor a template (which would hold a {)")
        return None
    return path.read_text()
