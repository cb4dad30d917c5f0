"""The one table of sampling parameters: a parameter is an annotated field of `Parameters`, and its `Row`.

From a row follow the normal form and the ranges (`vllm.sampling_params`), the field of requests, its default and its
description (`entrypoints.openai.protocol`), the limits and refusals (`engine.text.limits`), the arrays of a batch
(`runner.input_batch`) and of the native sampler, and the fuzzer's values. `host` beside this file and
`csrc/runtime/sampler.cpp` define the meaning of those that change logits or draws.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from vllm import envs
from vllm.sample.forms import ReasoningGate, RepetitionDetectionParams, RequestOutputKind, StructuredOutputsParams

MAX_REPETITION_PENALTY = 1e6
MAX_TEMPERATURE = 2.0


class Effect(Enum):
    """What a parameter changes."""

    LOGITS = "logits"
    """Logits, before anything is drawn."""
    CANDIDATES = "candidates"
    """Which tokens can be drawn; without meaning where decoding is greedy."""
    DRAW = "draw"
    """How one of the candidates is drawn."""
    END = "end"
    """When the output ends."""
    REPORT = "report"
    """Which log-probabilities are reported."""
    TEXT = "text"
    """The output's text or the form in which it is delivered."""
    REQUEST = "request"
    """The request as a whole."""


class Runs(Enum):
    """Where a parameter is honoured."""

    EVERYWHERE = "everywhere"
    """On every target: by the device, or by the engine."""
    LOGITS_NEEDED = "logits needed"
    """Where logits are at hand: not by a device that samples with programs of its own."""
    NOWHERE = "nowhere"
    """Known by name and refused."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A bound of a value, and how an error words it."""

    text: str
    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    also: tuple[float, ...] = ()
    """Values beyond the bounds that are allowed."""

    def holds(self, value: float) -> bool:
        return (self.low <= value <= self.high and value > self.above) or value in self.also


Kind = Literal["integer", "count", "number", "switch", "text list", "token ids", "bias", "other"]
"""Form of the values. count: a number of log-probabilities, or a switch for one."""
_KINDS: dict[Any, Kind] = {
    int: "integer",
    float: "number",
    bool: "switch",
    list[str]: "text list",
    list[int]: "token ids",
    dict[int, float]: "bias",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What is known of one parameter. `name`, `kind`, `default` and `is_optional` come from the field."""

    effect: Effect
    runs: Runs = Runs.EVERYWHERE
    help: str = ""
    """For users: a sentence or two."""
    rules: tuple[Rule, ...] = ()
    """Bounds of a number."""
    is_field: bool = False
    """Every request that generates text has a field of this name."""
    from_checkpoint: bool = False
    """The checkpoint's generation config may bring the default."""
    with_beams: bool = False
    """Beam search honours it, or can do without."""
    is_shown: bool = True
    """Named by `repr`."""
    column: Literal["", "float32", "int32", "uint64"] = ""
    """Type of the array that holds the values of a batch, one per row."""
    most: int | Callable[[], int] = 0
    """Most entries of a list or mapping; 0: no limit."""
    unit: str = "ids"
    """Of `most`."""
    longest: int = 0
    """Most characters of each text."""
    advice: str = ""
    """Why it runs nowhere, and what to use."""
    examples: tuple[Any, ...] = ()
    """Further legal values in a request's JSON, for fuzzers; see `values_of`."""

    name: str = ""
    kind: Kind = "other"
    default: Any = None
    is_optional: bool = False
    """None is a value of its own."""
    takes_one_text: bool = False
    """A single text stands for a list of one."""

    @property
    def holds_token_ids(self) -> bool:
        return self.kind in ("token ids", "bias")


def refused(advice: str) -> Row:
    """A parameter that is known by name, and honoured nowhere."""
    return Row(effect=Effect.REQUEST, runs=Runs.NOWHERE, advice=advice, is_shown=False)


_ADDITIVE = (Rule("must be in [-2, 2]", low=-2, high=2),)
_LOGPROB_COUNT = (Rule("must be non-negative or -1 (all)", low=-1),)


class Parameters(msgspec.Struct, omit_defaults=True):
    """Every parameter of sampling, in vLLM's order."""

    n: Annotated[
        int,
        Row(
            effect=Effect.REQUEST,
            help="Completions for each prompt.",
            rules=(Rule("must be at least 1", low=1),),
            with_beams=True,
            examples=(2, 3),
        ),
    ] = 1
    presence_penalty: Annotated[
        float,
        Row(
            effect=Effect.LOGITS,
            runs=Runs.LOGITS_NEEDED,
            help="-2 to 2; once for each token that was generated.",
            rules=_ADDITIVE,
            is_field=True,
            column="float32",
        ),
    ] = 0.0
    frequency_penalty: Annotated[
        float,
        Row(
            effect=Effect.LOGITS,
            runs=Runs.LOGITS_NEEDED,
            help="-2 to 2; for each time a token was generated.",
            rules=_ADDITIVE,
            is_field=True,
            column="float32",
        ),
    ] = 0.0
    repetition_penalty: Annotated[
        float,
        Row(
            effect=Effect.LOGITS,
            runs=Runs.LOGITS_NEEDED,
            help="Above 1 discourages tokens of prompt and output.",
            rules=(
                Rule("must be greater than zero", above=0),
                Rule("must be at most 1e6", high=MAX_REPETITION_PENALTY),
            ),
            is_field=True,
            from_checkpoint=True,
            column="float32",
            examples=(0.5, 2),
        ),
    ] = 1.0
    temperature: Annotated[
        float,
        Row(
            effect=Effect.DRAW,
            help="0: greedy. Up to 2.",
            rules=(Rule("must be non-negative", low=0), Rule("must be at most 2", high=MAX_TEMPERATURE)),
            is_field=True,
            from_checkpoint=True,
            with_beams=True,
            column="float32",
            examples=(0.5,),
        ),
    ] = 1.0
    top_p: Annotated[
        float,
        Row(
            effect=Effect.CANDIDATES,
            help="Sample from the most likely tokens whose probabilities sum to this.",
            rules=(Rule("must be in (0, 1]", above=0, high=1),),
            is_field=True,
            from_checkpoint=True,
            column="float32",
            examples=(0.1,),
        ),
    ] = 1.0
    top_k: Annotated[
        int,
        Row(
            effect=Effect.CANDIDATES,
            help="Sample from this many most likely tokens; 0 or -1: no bound.",
            rules=(Rule("must be 0 or -1 (disabled), or at least 1", low=0),),
            is_field=True,
            from_checkpoint=True,
            column="int32",
            examples=(-1, 1, 50),
        ),
    ] = 0
    min_p: Annotated[
        float,
        Row(
            effect=Effect.CANDIDATES,
            runs=Runs.LOGITS_NEEDED,
            help="Drop tokens less likely than this share of the most likely one.",
            rules=(Rule("must be in [0, 1]", low=0, high=1),),
            is_field=True,
            from_checkpoint=True,
            column="float32",
            examples=(0.1,),
        ),
    ] = 0.0
    seed: Annotated[
        int | None,
        Row(
            effect=Effect.DRAW,
            runs=Runs.LOGITS_NEEDED,
            help="Makes the draws of this request repeatable.",
            rules=(Rule("must fit in 64 bits", low=-(2**63), high=2**64 - 1),),
            is_field=True,
            with_beams=True,
            column="uint64",
            examples=(0, 1, 2**62, -1),
        ),
    ] = None
    stop: Annotated[
        str | list[str] | None,
        Row(
            effect=Effect.END,
            help="Texts that end the output.",
            is_field=True,
            most=128,
            unit="texts",
            longest=4096,
            examples=("e", ["a", "the"], []),
        ),
    ] = None
    stop_token_ids: Annotated[
        list[int] | None,
        Row(
            effect=Effect.END,
            help="Tokens that end the output.",
            is_field=True,
            most=128,
            examples=([5], []),
        ),
    ] = None
    ignore_eos: Annotated[
        bool,
        Row(
            effect=Effect.END,
            help="Do not end at the end-of-sequence token.",
            is_field=True,
            with_beams=True,
        ),
    ] = False
    max_tokens: Annotated[
        int | None,
        Row(
            effect=Effect.END,
            help="Most tokens to generate. None: what the context holds.",
            rules=(Rule("must be at least 1", low=1),),
            with_beams=True,
            examples=(5, 20),
        ),
    ] = 16
    min_tokens: Annotated[
        int,
        Row(
            effect=Effect.END,
            runs=Runs.LOGITS_NEEDED,
            help="No end-of-sequence or stop token before this many tokens.",
            rules=(Rule("must be greater than or equal to 0", low=0),),
            is_field=True,
            examples=(1, 5),
        ),
    ] = 0
    logprobs: Annotated[
        int | None,
        Row(
            effect=Effect.REPORT,
            runs=Runs.LOGITS_NEEDED,
            help="Log-probabilities of this many most likely tokens; 0: of the sampled one only, -1: of all.",
            rules=_LOGPROB_COUNT,
            with_beams=True,
        ),
    ] = None
    prompt_logprobs: Annotated[
        int | None,
        Row(
            effect=Effect.REPORT,
            runs=Runs.LOGITS_NEEDED,
            help="Log-probabilities of this many most likely prompt tokens.",
            rules=_LOGPROB_COUNT,
            examples=(0, 2),
        ),
    ] = None
    flat_logprobs: Annotated[
        bool, Row(effect=Effect.REPORT, is_shown=False, help="Report log-probabilities as `FlatLogprobs`.")
    ] = False
    logprob_token_ids: Annotated[
        list[int] | None,
        Row(
            effect=Effect.REPORT,
            runs=Runs.LOGITS_NEEDED,
            help="Tokens whose log-probabilities are always reported.",
            is_shown=False,
            most=128,
        ),
    ] = None
    detokenize: Annotated[bool, Row(effect=Effect.TEXT, is_shown=False, help="Give the output's text.")] = True
    skip_special_tokens: Annotated[
        bool,
        Row(effect=Effect.TEXT, help="Leave special tokens out of the text.", is_field=True, with_beams=True),
    ] = True
    spaces_between_special_tokens: Annotated[
        bool, Row(effect=Effect.TEXT, help="Separate special tokens by spaces.", is_field=True, with_beams=True)
    ] = True
    include_stop_str_in_output: Annotated[
        bool,
        Row(effect=Effect.TEXT, help="Keep the text of what ended the output.", is_field=True, with_beams=True),
    ] = False
    output_kind: Annotated[
        RequestOutputKind, Row(effect=Effect.TEXT, is_shown=False, help="What each `RequestOutput` holds.")
    ] = RequestOutputKind.CUMULATIVE
    stream_interval: Annotated[
        int | None,
        Row(
            effect=Effect.TEXT,
            help="Tokens between two `RequestOutput`s.",
            rules=(Rule("must be at least 1", low=1),),
            is_shown=False,
            with_beams=True,
        ),
    ] = None
    structured_outputs: Annotated[
        StructuredOutputsParams | None, Row(effect=Effect.LOGITS, help="The form that the output must have.")
    ] = None
    logit_bias: Annotated[
        dict[int, float] | None,
        Row(
            effect=Effect.LOGITS,
            runs=Runs.LOGITS_NEEDED,
            help="Token id -> -100 to 100, added to its logit.",
            is_field=True,
            is_shown=False,
            most=1024,
            unit="entries",
            examples=({"5": 1}, {"5": -100, "6": 100}, {}),
        ),
    ] = None
    allowed_token_ids: Annotated[
        list[int] | None,
        Row(
            effect=Effect.LOGITS,
            runs=Runs.LOGITS_NEEDED,
            help="Only these tokens are generated.",
            is_field=True,
            is_shown=False,
            examples=([40, 41, 42],),
        ),
    ] = None
    bad_words: Annotated[
        list[str] | None,
        Row(
            effect=Effect.LOGITS,
            runs=Runs.LOGITS_NEEDED,
            help="Words that are not generated.",
            is_field=True,
            most=lambda: envs.VLLM_MAX_NUM_BAD_WORDS,
            unit="texts",
            longest=4096,
            examples=(["the"], []),
        ),
    ] = None
    extra_args: Annotated[dict[str, Any] | None, refused("no logits processor reads them")] = None
    truncate_prompt_tokens: Annotated[
        int | None,
        Row(
            effect=Effect.REQUEST,
            help="Keep this many prompt tokens; -1: what fits.",
            rules=(Rule("must be -1 or at least 1", low=1, also=(-1,)),),
            is_shown=False,
            with_beams=True,
            examples=(10, -1),
        ),
    ] = None
    skip_reading_prefix_cache: Annotated[
        bool | None, Row(effect=Effect.REQUEST, is_shown=False, help="Compute all of the prompt.")
    ] = None
    skip_clone: Annotated[
        bool, Row(effect=Effect.REQUEST, is_shown=False, help="The engine may change this object.")
    ] = False
    thinking_token_budget: Annotated[int | None, refused("the reasoning has no bound of its own; use max_tokens")] = (
        None
    )
    repetition_detection: Annotated[
        RepetitionDetectionParams | None, refused("use repetition_penalty, frequency_penalty or stop")
    ] = None
    watermarking: Annotated[bool | None, refused("outputs are not watermarked")] = None
    prompt_logprob_token_ids: Annotated[list[int] | None, refused("use prompt_logprobs")] = None
    prompt_logprob_start: Annotated[int | None, refused("prompt_logprobs cover the whole prompt")] = None
    routed_experts_prompt_start: Annotated[int, refused("routed experts are not reported")] = 0
    trace_decode_token_ids: Annotated[list[int] | None, refused("decoding is not traced")] = None
    guided_decoding: Annotated[
        StructuredOutputsParams | None,
        Row(effect=Effect.LOGITS, is_shown=False, help="The older name of structured_outputs."),
    ] = None
    reasoning_gate: Annotated[
        ReasoningGate | None,
        Row(effect=Effect.LOGITS, is_shown=False, help="Where a structured output begins behind the reasoning."),
    ] = None
    is_internal: Annotated[
        bool,
        Row(
            effect=Effect.REQUEST,
            is_shown=False,
            help="The engine makes this request for a user's, as for a step of beam search. It reports to the "
            "engine alone, so bounds on what users are told do not apply.",
        ),
    ] = False


def _rows() -> dict[str, Row]:
    hints = get_type_hints(Parameters, include_extras=True)
    return {field.name: _completed(field, *get_args(hints[field.name])) for field in msgspec.structs.fields(Parameters)}


def _completed(field: Any, hint: Any, row: Row) -> Row:
    is_union = get_origin(hint) in (Union, UnionType)
    types = [each for each in get_args(hint) if each is not type(None)] if is_union else [hint]
    kind: Kind = next((_KINDS[each] for each in reversed(types) if each in _KINDS), "other")
    if row.effect is Effect.REPORT and kind == "integer":
        kind = "count"
    takes_one_text = kind == "text list" and str in types
    return replace(
        row, name=field.name, kind=kind, default=field.default, is_optional=is_union, takes_one_text=takes_one_text
    )


ROWS: dict[str, Row] = _rows()
"""Every parameter by name, in order."""
LOGITS_NEEDED = frozenset(name for name, row in ROWS.items() if row.runs is Runs.LOGITS_NEEDED)
"""What `sample` honours beyond temperature, top_k, top_p and the stop rules."""
COLUMNS: dict[str, Row] = {name: row for name, row in ROWS.items() if row.column}
"""Parameters whose values of a batch are an array."""


COLUMN_DEFAULTS: dict[str, float] = {name: row.default or 0 for name, row in COLUMNS.items()}
"""The number that a column holds for a request that says nothing."""


def values_of(row: Row) -> list[Any]:
    """Legal values of a request's field, as JSON types: its bounds, its default, and the examples."""
    bounds = [bound for rule in row.rules for bound in (rule.low, rule.high) if abs(bound) < 2**63]
    default = [] if row.default is None else [row.default]
    switches = [True, False] if row.kind == "switch" else []
    nothing = [None] if row.is_optional or row.kind == "number" else []
    return [*row.examples, *bounds, *default, *switches, *nothing]
