"""Calls that a model makes of its own accord (`tool_choice` auto), held to what the tools declare: a grammar.

An output is text, with calls in it or calls in its place, in the form that the tool parser reads. The grammar takes any
text that the parser gives as content, and of calls those alone that name a tool and, where that is `strict`, have
arguments by its schema.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from vllm import envs
from vllm.engine.structured_outputs.schema import SchemaFault, fitted
from vllm.entrypoints.chat_output.forced_tools import call_schema, calls_schema, parameters_of
from vllm.entrypoints.chat_output.parsers.more_tools import (
    CoderReader,
    Llama4PythonicParser,
    PythonicParser,
    Qwen3CoderParser,
    is_text,
)
from vllm.entrypoints.chat_output.parsers.tools import (
    GraniteParser,
    HermesParser,
    Llama3JsonParser,
    MistralParser,
    WholeParser,
)
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import StructuredOutputsParams

LEVELS = ("auto", "function", "parameter")
"""Of --tool-strict-level: what holds where a tool does not say it itself. function: calls name a tool. parameter: all
tools are strict."""

Tool = dict[str, Any]

_JSON = {"whitespace_flexible": False, "item_separator": ",[ ]?", "key_separator": ":[ ]?", "coerce_one_of": True}
_PYTHON_NAME, _CODER_NAME = r"[A-Za-z_][\w.-]*", r"[^<>\n]+"
_END_OF_TEXT = CoderReader.END_PARAMETER
_IN_NO_TEXT = (CoderReader.END_FUNCTION, CoderReader.PARAMETER, Qwen3CoderParser.CLOSE)
_SPACE = r"[\s\x1c-\x1f]"
_ANY_TEXT = "(?s:.*)"


class _Asked(NamedTuple):
    """What a form of calls is made of. mark: a mark of the parser's as a grammar has it, as a text or a token.

    several: calls. has_form: whether the output without calls has a form, the rule `form`.
    """

    tools: Sequence[Tool]
    mark: Callable[[str], str]
    several: bool
    has_form: bool

    @property
    def any_call(self) -> str:
        """Where each tool has a rule for its calls."""
        return " | ".join(f"call{i}" for i in range(len(self.tools)))

    def repeated(self, rule: str, before: str = "") -> str:
        return f"{rule} ({before} {rule})*" if self.several else rule


def holds_calls(tools: Sequence[Tool], level: str) -> bool:
    return level != "auto" or any(is_strict(tool, level) for tool in tools)


def is_strict(tool: Tool, level: str) -> bool:
    return level == "parameter" or (bool(tool["function"].get("strict")) and envs.VLLM_ENFORCE_STRICT_TOOL_CALLING)


def calls_grammar(
    parser: str,
    tools: Sequence[Tool],
    level: str,
    *,
    several: bool = True,
    form: StructuredOutputsParams | None = None,
    token_of: Callable[[str], int | None] = lambda text: None,
) -> StructuredOutputsParams:
    """parser: the tool parser's name. several: whether there may be more than one call. form: what the request asks of
    an output without calls. token_of: the token that a text is, if it is one.

    Raises VLLMValidationError where that cannot be held to.
    """
    if parser not in _FORMS:
        raise _refusal(f"is not possible with the tool parser {parser!r} (with {', '.join(sorted(_FORMS))} it is)")

    def mark(text: str) -> str:
        token = token_of(text)
        return _quoted(text) if token is None else f"({_quoted(text)} | <[{token}]>)"

    held = [tool if is_strict(tool, level) else _any_arguments(tool) for tool in tools]
    plain = [] if form is None else [f"form: {_json(_schema_of(form))}"]
    lines = ["%llguidance {}", *_FORMS[parser](_Asked(held, mark, several, bool(plain))), *plain]
    return StructuredOutputsParams(
        grammar="\n".join([*lines, f"SPACE: /{_SPACE}+/", "BREAK: /[ \\n]/", "NEWLINE: /\\n/"])
    )


def _any_arguments(tool: Tool) -> Tool:
    return {"function": {"name": tool["function"]["name"], "parameters": {"type": "object"}}}


def _schema_of(form: StructuredOutputsParams) -> Any:
    if form.json is None and not form.json_object:
        raise _refusal("excludes other forms of the output than JSON")
    if form.json is None:
        return {"type": "object"}
    return json.loads(form.json) if isinstance(form.json, str) else form.json


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _json(schema: Any) -> str:
    """A value by a schema. Grammars in which `::=` stands are taken for another notation."""
    options = {"x-guidance": _JSON}
    try:
        schema = fitted(schema)
    except SchemaFault as fault:
        raise _refusal(f"needs another schema: at {fault.place.lstrip('.')}, {fault}") from None
    written = json.dumps({**schema, **options} if isinstance(schema, dict) else {"allOf": [schema], **options})
    return "%json " + written.replace("::=", ":\\u003a=")


# Whole outputs that are calls.


def _whole(parser: type[WholeParser], calls: list[str], asked: _Asked, end: str = "") -> list[str]:
    """calls: the rule `body`, and what it needs. An output that begins as calls do is calls."""
    marks = " | ".join(map(asked.mark, parser.marks))
    before = f"(({marks}) BREAK?){'?' if parser.openings else ''}" if marks else ""
    begins = "|".join(map(re.escape, (*parser.marks, *parser.openings)))
    plain = f"plain: PLAIN\nPLAIN: /{_ANY_TEXT}/ & ~/(?s:{_SPACE}*({begins}).*)/"
    lines = [f"calls: SPACE? {before} body {end}", *calls]
    return ["start: calls | SPACE? form", *lines] if asked.has_form else ["start: calls | plain", *lines, plain]


def _llama3_json(asked: _Asked) -> list[str]:
    call = f"call: {_json(call_schema(asked.tools, 'parameters'))}"
    calls = asked.repeated("call", '";" BREAK?')
    return _whole(Llama3JsonParser, [f"body: {calls}", call], asked)


def _list_of_json(parser: type[WholeParser]) -> Callable[..., list[str]]:
    def lines(asked: _Asked) -> list[str]:
        return _whole(parser, [f"body: {_json(calls_schema(asked.tools, 'arguments', asked.several))}"], asked)

    return lines


def _pythonic(parser: type[PythonicParser]) -> Callable[..., list[str]]:
    def lines(asked: _Asked) -> list[str]:
        listed = asked.repeated("call", '"," BREAK?')
        rules = [f'body: "[" {listed} "]"', f"call: {asked.any_call}"]
        for i, tool in enumerate(asked.tools):
            opened = _quoted(_name(tool["function"]["name"], _PYTHON_NAME) + "(")
            rules.append(f'call{i}: {opened} arguments{i} ")"')
            rules += _arguments(i, tool, _keyword, '"," BREAK?', f'/[A-Za-z_]\\w*/ "=" {_json({})}')
        return _whole(parser, rules, asked, f"{asked.mark(parser.END)}?" if parser.END else "")

    return lines


def _keyword(name: str, schema: Any, definitions: dict[str, Any]) -> str:
    return f"{_quoted(_name(name, _PYTHON_NAME) + '=')} {_json(_with(schema, definitions))}"


# Calls among other text.


def _marked(parser: type[HermesParser], body: list[str], asked: _Asked) -> list[str]:
    """body: the rule `body`, between the marks. Of one call, text that follows may look like others."""
    opened = asked.mark(parser.OPEN)
    rest = f"BREAK? body BREAK? {asked.mark(parser.CLOSE)}"
    if asked.has_form:
        return [f"start: {asked.repeated('call')} | SPACE? form", f"call: SPACE? {opened} {rest}", *body]
    token = opened.partition(" | ")[2].rstrip(")")
    return [
        f"start: call{'*' if asked.several else '?'} TEXT",
        f"open[lazy]: TEXT {_quoted(parser.OPEN)}",
        f"call: {f'(open | TEXT {token})' if token else 'open'} {rest}",
        f"TEXT: /{_ANY_TEXT}/",
        *body,
    ]


def _hermes(asked: _Asked) -> list[str]:
    return _marked(HermesParser, [f"body: {_json(call_schema(asked.tools, 'arguments'))}"], asked)


def _qwen3_coder(asked: _Asked) -> list[str]:
    """Values are texts up to their mark, or JSON."""
    parser = Qwen3CoderParser
    inner = "|".join(re.escape(each).replace("/", "\\/") for each in _IN_NO_TEXT)
    end = re.escape(_END_OF_TEXT).replace("/", "\\/")
    value = f"VALUE: /(?s:.*){end}/ & ~/(?s:.*({inner}).*)/"
    rules = [f"body: {asked.any_call}", "value[lazy]: VALUE", value]
    for i, tool in enumerate(asked.tools):
        opened = _quoted(f"{CoderReader.FUNCTION}{_name(tool['function']['name'], _CODER_NAME)}>")
        rules.append(f"call{i}: {opened} BREAK? arguments{i} {_quoted(CoderReader.END_FUNCTION)}")
        other = f'"{CoderReader.PARAMETER}" /[^<>\\n]+/ ">" value BREAK?'
        rules += _arguments(i, tool, _parameter, "", other)
    return _marked(parser, rules, asked)


def _parameter(name: str, schema: Any, definitions: dict[str, Any]) -> str:
    opened = _quoted(f"{CoderReader.PARAMETER}{_name(name, _CODER_NAME)}>")
    closed = f"{_quoted(CoderReader.END_PARAMETER)} BREAK?"
    if not is_text(schema):
        return f"{opened} BREAK? {_json(_with(schema, definitions))} BREAK? {closed}"
    if _takes_any_text(schema):
        return f"{opened} value BREAK?"
    texts = (_listed(schema, "enum") or [schema.get("const")]) if isinstance(schema, dict) else [None]
    if not all(isinstance(text, str) and _is_one_text(text) for text in texts):
        raise _refusal(
            f"with the tool parser qwen3_coder needs a simpler schema for {name[:64]!r}: one type, or an enum of "
            "texts without the marks of calls and without line breaks at their ends"
        )
    return f"{opened} NEWLINE? ({' | '.join(map(_quoted, texts))}) NEWLINE? {closed}"


def _is_one_text(text: str) -> bool:
    """Whether the parser reads all of it, and no less."""
    return text.strip("\n") == text and not any(mark in text for mark in (_END_OF_TEXT, *_IN_NO_TEXT))


def _takes_any_text(schema: Any) -> bool:
    if not isinstance(schema, dict):
        return False
    if any(_takes_any_text(each) for name in ("anyOf", "oneOf") for each in _listed(schema, name)):
        return True
    return schema.get("type") == "string" and not schema.keys() - {
        "type",
        "title",
        "description",
        "default",
        "examples",
    }


# Arguments one after another.


def _name(name: str, form: str) -> str:
    """The name of a tool or a property, where the calls' form can write it."""
    if re.fullmatch(form, name) is None:
        raise _refusal(f"needs names that the parser's form of calls can write, which {name[:64]!r} is not")
    return name


def _arguments(
    i: int, tool: Tool, one: Callable[[str, Any, dict[str, Any]], str], between: str, other: str
) -> Iterator[str]:
    """The rule `arguments<i>`: a tool's properties in their order, those left out that are not required.

    one: how an argument is written. other: any argument, of tools without properties that take any.
    """
    parameters = parameters_of(tool)
    properties = parameters.get("properties") or {}
    if not isinstance(properties, dict) or parameters.get("type", "object") != "object":
        raise _refusal(f"needs `parameters` that are an object with `properties`, in {tool['function']['name'][:64]!r}")
    if not properties and parameters.get("additionalProperties") is not False:
        yield f"arguments{i}: ({other} ({between} {other})*)?"
        return
    required = _listed(parameters, "required")
    definitions: dict[str, Any] = {name: parameters[name] for name in ("$defs", "definitions") if name in parameters}
    yield f"arguments{i}: first{i}_0"
    for n, (name, schema) in enumerate(properties.items()):
        yield f"argument{i}_{n}: {one(name, schema, definitions)}"
        for state, before in (("first", ""), ("next", between)):
            skip = "" if name in required else f" | {state}{i}_{n + 1}"
            yield f"{state}{i}_{n}: {before} argument{i}_{n} next{i}_{n + 1}{skip}"
    yield f'first{i}_{len(properties)}: ""'
    yield f'next{i}_{len(properties)}: ""'


def _listed(schema: dict[str, Any], key: str) -> list[Any]:
    value = schema.get(key)
    if not isinstance(value, list | None):
        raise _refusal(f"needs {key!r} to be a list wherever a schema has it")
    return value or []


def _with(schema: Any, definitions: dict[str, Any]) -> Any:
    return {**schema, **definitions} if isinstance(schema, dict) else schema


def _refusal(reason: str) -> VLLMValidationError:
    return VLLMValidationError(
        f'`strict` tools with `tool_choice` "auto" {reason}. `tool_choice` "required" holds calls to their schemas.',
        parameter="tools",
    )


_FORMS: dict[str, Callable[[_Asked], list[str]]] = {
    "granite": _list_of_json(GraniteParser),
    "hermes": _hermes,
    "llama3_json": _llama3_json,
    "llama4_pythonic": _pythonic(Llama4PythonicParser),
    "mistral": _list_of_json(MistralParser),
    "pythonic": _pythonic(PythonicParser),
    "qwen3_coder": _qwen3_coder,
}
