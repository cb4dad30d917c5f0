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
from vllm.entrypoints.chat_output.parsers.calls import USUAL_KEYS
from vllm.entrypoints.chat_output.parsers.more_tools import (
    CoderReader,
    Llama4PythonicParser,
    PythonicParser,
    Qwen3CoderParser,
)
from vllm.entrypoints.chat_output.parsers.tools import (
    CallsParser,
    GraniteParser,
    HermesParser,
    Llama3JsonParser,
    MistralParser,
)
from vllm.entrypoints.chat_output.parsers.value_types import TEXT, SchemaTypes, Types, as_value, referred, type_of
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import StructuredOutputsParams

LEVELS = ("auto", "function", "parameter")
"""Of --tool-strict-level: what holds where a tool does not say it itself. function: calls name a tool. parameter: all
tools are strict."""

Tool = dict[str, Any]

_JSON = {"whitespace_flexible": False, "item_separator": ",[ ]?", "key_separator": ":[ ]?", "coerce_one_of": True}
_PYTHON_NAME, _CODER_NAME = r"[A-Za-z_][\w.-]*", r"[^<>\n]+"
_END_OF_TEXT = CoderReader.END_PARAMETER
_IN_NO_TEXT = (Qwen3CoderParser.END_FUNCTION, CoderReader.PARAMETER, Qwen3CoderParser.CLOSE)
_SPACE = r"[\s\x1c-\x1f]"
_ANY_TEXT = "(?s:.*)"
_LIKE_A_VALUE = rf"([\[{{]|{_SPACE}|(true|false|null|-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?)({_SPACE}|<)).*"
"""How texts do not begin beside which values of other types may stand: a grammar takes no step back."""
_ANNOTATIONS = {"title", "description", "default", "examples", "deprecated"}
_MAX_ALTERNATIVES = 64


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

    def token(self, text: str) -> str:
        """A mark as the token that it is; "" if it is none."""
        return self.mark(text).partition(" | ")[2].rstrip(")")

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


def _whole(
    parser: type[CallsParser], calls: list[str], asked: _Asked, end: str = "", no_plain: Sequence[str] = ()
) -> list[str]:
    """An output that begins as calls do, or goes on behind a mark of calls, is calls.

    calls: the rule `body`, and what it needs. no_plain: what no text without calls holds, as regular expressions.
    """
    marks = " | ".join(map(asked.mark, parser.marks))
    before = f"(({marks}) BREAK?){'?' if parser.openings else ''}" if marks else ""
    lines = [f"calls: SPACE? {before} body {end}", *calls]
    if asked.has_form:
        return ["start: calls | SPACE? form", *lines]
    opens = [f"{_SPACE}*{_either(parser.openings)}.*"] if parser.openings else []
    no_calls = [*opens, *(f".*{each}.*" for each in no_plain)]
    no_marks = [f".*{_either(parser.marks)}.*"] if marks else []
    plain = ["plain: PLAIN", f"PLAIN: {_text_without([*no_calls, *no_marks])}"]
    if not marks:
        return ["start: calls | plain", *lines, *plain]
    marked = [f"marked{i}" for i in range(len(parser.marks))]
    rules = [f"{name}[lazy]: BEFORE {_quoted(mark)}" for name, mark in zip(marked, parser.marks, strict=True)]
    tokens = [f"BEFORE {token}" for mark in parser.marks if (token := asked.token(mark))]
    behind = f"behind: ({' | '.join([*marked, *tokens])}) BREAK? body {end}"
    return ["start: calls | behind | plain", *lines, behind, *rules, f"BEFORE: {_text_without(no_calls)}", *plain]


def _text_without(excluded: Sequence[str]) -> str:
    """Any text but those that one of some regular expressions matches."""
    return f"/{_ANY_TEXT}/" + (f" & ~/(?s:{'|'.join(excluded)})/" if excluded else "")


def _either(texts: Sequence[str]) -> str:
    return f"({'|'.join(re.escape(text).replace('/', chr(92) + '/') for text in texts)})"


def _llama3_json(asked: _Asked) -> list[str]:
    call = f"call: {_json(call_schema(asked.tools, 'parameters'))}"
    calls = asked.repeated("call", '";" BREAK?')
    keys = _either((*USUAL_KEYS, "parameters", "arguments"))
    on_a_line = rf'\n{_SPACE}*\{{[ \t\n\r]*"({keys}"|[^"]*\\)'
    return _whole(Llama3JsonParser, [f"body: {calls}", call], asked, no_plain=[on_a_line])


def _list_of_json(parser: type[CallsParser]) -> Callable[..., list[str]]:
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


class _Bare(NamedTuple):
    """Calls that stand without the outer marks. mark: what they begin with, as a regular expression. rules: `bare`, and
    what it needs."""

    mark: str
    rules: list[str]


def _marked(
    parser: type[HermesParser | Qwen3CoderParser], body: list[str], asked: _Asked, bare: _Bare | None = None
) -> list[str]:
    """body: the rule `body`, between the marks. Of one call, text that follows may look like others."""
    rest = f"BREAK? body BREAK? {asked.mark(parser.CLOSE)}"
    if asked.has_form:
        call = f"call: SPACE? {asked.mark(parser.OPEN)} {rest}"
        return [f"start: {asked.repeated('call')} | SPACE? form", call, *body]
    token = asked.token(parser.OPEN)
    no_text = "" if bare is None else f" & ~/(?s:.*{bare.mark}.*)/"
    return [
        f"start: call{'*' if asked.several else '?'} TEXT",
        f"open[lazy]: TEXT {_quoted(parser.OPEN)}",
        f"call: {f'(open | TEXT {token})' if token else 'open'} {rest}{'' if bare is None else ' | bare'}",
        f"TEXT: /{_ANY_TEXT}/{no_text}",
        *([] if bare is None else bare.rules),
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
    rules += ["other_value[lazy]: OTHER", f"OTHER: /(?s:.*){end}/ & ~/(?s:.*({inner}).*)/ & ~/(?s:{_LIKE_A_VALUE})/"]
    bare, names = [f"bare: {' | '.join(f'bare{i}' for i in range(len(asked.tools)))}"], []
    for i, tool in enumerate(asked.tools):
        names.append(_name(tool["function"]["name"], _CODER_NAME))
        opened = _quoted(f"{parser.FUNCTION}{names[i]}>")
        rest = f"BREAK? arguments{i} {_quoted(parser.END_FUNCTION)}"
        rules.append(f"call{i}: {opened} {rest}")
        bare += [f"bare{i}: begun{i} {rest}", f"begun{i}[lazy]: TEXT {opened}"]
        other = f'"{CoderReader.PARAMETER}" /[^<>\\n]+/ ">" value BREAK?'
        rules += _arguments(i, tool, _parameter, "", other)
    return _marked(parser, rules, asked, _Bare(f"{_either([parser.FUNCTION])}{_either(names)}>", bare))


def _parameter(name: str, schema: Any, definitions: dict[str, Any]) -> str:
    """A value that may be a text or something else is read as the latter where it can be."""
    opened = _quoted(f"{CoderReader.PARAMETER}{_name(name, _CODER_NAME)}>")
    closed = f"{_quoted(CoderReader.END_PARAMETER)} BREAK?"
    types = SchemaTypes(definitions)
    alternatives = list(_alternatives(schema, definitions))
    if len(alternatives) > _MAX_ALTERNATIVES:
        raise _needs_simpler(name)
    values = [each for each in alternatives if "string" not in (types.of(each) or TEXT)]
    texts = [each for each in alternatives if "string" in (types.of(each) or TEXT)]
    if any(map(_is_plain, texts)) and all(map(_is_plain, values)):
        return f"{opened} value BREAK?"
    written = [f"{_json(_with(each, definitions))} BREAK? {closed}" for each in values]
    if any(map(_is_plain, texts)):
        written.append("other_value BREAK?")
    elif texts:
        listed = [text for each in texts for text in _texts_of(each)]
        allowed = types.of(schema) or TEXT
        if not listed or not all(isinstance(text, str) and _is_one_text(text, allowed) for text in listed):
            raise _needs_simpler(name)
        written.append(f"({' | '.join(map(_quoted, listed))}) NEWLINE? {closed}")
    return f"{opened} {'NEWLINE?' if texts else 'BREAK?'} ({' | '.join(written)})"


def _needs_simpler(name: str) -> VLLMValidationError:
    return _refusal(
        f"with the tool parser qwen3_coder needs a simpler schema for {name[:64]!r}: types, or an enum of texts "
        "without the marks of calls and without line breaks at their ends"
    )


def _alternatives(schema: Any, definitions: dict[str, Any], depth: int = 0) -> Iterator[Any]:
    """Schemas of one type each, any of which may hold: those of `anyOf` and `oneOf`, and of each type in a list."""
    if not isinstance(schema, dict) or depth > 16:
        yield schema
        return
    own = schema.keys() - _ANNOTATIONS
    for keyword in ("anyOf", "oneOf"):
        if (branches := _listed(schema, keyword)) and own == {keyword}:
            for branch in branches:
                yield from _alternatives(branch, definitions, depth + 1)
            return
    if own == {"$ref"}:
        yield from _alternatives(referred(schema["$ref"], definitions), definitions, depth + 1)
        return
    if schema.get("nullable") is True:
        yield {"type": type_of(None)}
        schema = {name: value for name, value in schema.items() if name != "nullable"}
    values = _listed(schema, "enum")
    named = schema.get("type")
    for kind in named if isinstance(named, list) else sorted(set(map(type_of, values))):
        part = schema if not isinstance(named, list) else {**schema, "type": kind}
        of_kind = [value for value in values if type_of(value) in (kind, {"number": "integer"}.get(kind))]
        if not values or of_kind:
            yield {**part, "enum": of_kind} if values else part
    if not values and not isinstance(named, list):
        yield schema


def _texts_of(schema: Any) -> list[Any]:
    """The texts that a schema lists; none if it does not list them."""
    if not isinstance(schema, dict) or schema.keys() - _ANNOTATIONS - {"type", "enum", "const"}:
        return []
    return _listed(schema, "enum") or ([schema["const"]] if "const" in schema else [])


def _is_plain(schema: Any) -> bool:
    """Whether it asks for a type and no more."""
    named = schema.get("type") if isinstance(schema, dict) else None
    return isinstance(named, str) and not schema.keys() - _ANNOTATIONS - {"type"}


def _is_one_text(text: str, types: Types) -> bool:
    """Whether the parser reads all of it, no less, and as a text."""
    is_whole = text.strip("\n") == text and not any(mark in text for mark in (_END_OF_TEXT, *_IN_NO_TEXT))
    return is_whole and as_value(text, types) == json.dumps(text, ensure_ascii=False)


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
