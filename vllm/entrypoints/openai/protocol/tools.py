"""`tools` and `tool_choice`: from the forms of three APIs to that of a chat.

A tool that is no function of the caller's (web search, an interpreter, ...) is left out, since nothing runs here. The
functions of a namespace are shown to the model as `namespace__function`. A `tool_choice` of type allowed_tools leaves
of the tools those that it lists.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from vllm.entrypoints.fields import Fields, Unusable, check_fields, placed, refusal, usable

Tool = dict[str, Any]
Choice = str | dict[str, Any] | None

_CHOICES = {"none": "none", "auto": "auto", "required": "required", "any": "required"}
"""`any` is what Mistral's API and Anthropic's call `required`."""
_MODES = ("auto", "required")
_MESSAGES_FIELDS = {"name": "name", "description": "description", "parameters": "input_schema", "strict": "strict"}
_MESSAGES_HINTS = {
    "allowed_callers": "calls come from the model alone.",
    "defer_loading": "the model is shown all tools.",
    "eager_input_streaming": "arguments are always streamed.",
    "input_examples": "the template shows none.",
}


class Tools(NamedTuple):
    """functions: in a chat's form; None if there are none. choice: in a chat's form. places: of each function in the
    client's request. namespaces: of each function that is shown under another name, its namespace and its own name.
    """

    functions: list[Tool] | None = None
    choice: Choice = None
    places: tuple[str, ...] = ()
    namespaces: dict[str, tuple[str, str]] = {}

    def names(self, function: str = "", parameters: str = "parameters") -> dict[str, str]:
        """The client's places of a chat's tools. function, parameters: what they are called in its tools."""
        inner = f".{function}" if function else ""
        names: dict[str, str] = {}
        for i, place in enumerate(self.places):
            names[f"tools[{i}]"] = place
            names[f"tools[{i}].function"] = place + inner
            names[f"tools[{i}].function.parameters"] = f"{place}{inner}.{parameters}"
        return names


def chat_tools(tools: Any, choice: Any, route: str) -> Tools:
    found = usable(placed(_listed(tools), "tools"), _chat_function, route)
    return _chosen(bool(tools), found, choice, route)


def responses_tools(tools: Any, choice: Any, route: str) -> Tools:
    namespaces: dict[str, tuple[str, str]] = {}

    def convert(item: tuple[Any, str | None], place: str) -> Tool:
        tool, namespace = item
        function = _flat_function(tool, place)
        if namespace is not None:
            name = namespaced(namespace, function["name"])
            namespaces[name] = (namespace, function["name"])
            function["name"] = name
        return {"type": "function", "function": function}

    found = usable(_spread(_listed(tools), route), convert, route)
    return _chosen(bool(tools), found, choice, route)._replace(namespaces=namespaces)


def messages_tools(tools: Any, choice: Any, route: str) -> Tools:
    """choice: an object, `disable_parallel_tool_use` aside."""
    found = usable(placed(_listed(tools), "tools"), lambda tool, place: _messages_tool(tool, place, route), route)
    if choice is not None:
        check_fields(choice, Fields(("type", "name", "disable_parallel_tool_use")), route, "tool_choice")
        kind = choice.get("type")
        if kind not in ("auto", "any", "none", "tool"):
            raise refusal("tool_choice.type", f"must be auto, any, none or tool, not {str(kind)[:32]!r}.")
        choice = {"type": "function", "name": choice.get("name")} if kind == "tool" else kind
    return _chosen(bool(tools), found, choice, route)


def namespaced(namespace: str, name: str) -> str:
    """What the model is shown of a namespace's function."""
    return f"{namespace}__{name}"


def _listed(tools: Any) -> list[Any]:
    if not isinstance(tools, list | None):
        raise refusal("tools", "must be a list.")
    return tools or []


def _spread(tools: list[Any], route: str) -> Iterator[tuple[str, tuple[Any, str | None]]]:
    """Tools with their namespace, if they have one."""
    for place, tool in placed(tools, "tools"):
        if not isinstance(tool, dict) or tool.get("type") != "namespace":
            yield place, (tool, None)
            continue
        check_fields(tool, Fields(("type", "name", "description", "tools")), route, place)
        if not isinstance(tool.get("name"), str) or not isinstance(tool.get("tools"), list):
            raise refusal(place, "of type namespace needs `name` and `tools`.")
        for inner, each in placed(tool["tools"], f"{place}.tools"):
            yield inner, (each, tool["name"])


def _check_kind(tool: Any, place: str, known: tuple[str | None, ...], form: str) -> None:
    """Raises Unusable for a tool of another kind."""
    if not isinstance(tool, dict):
        raise refusal(place, f"must be {form}.")
    kind = tool.get("type")
    if isinstance(kind, str) and kind not in known:
        raise Unusable(f"of type {kind[:64]!r}, which does not run here; functions can be called")
    if kind not in known:
        raise refusal(f"{place}.type", f"must be a text; functions are {form}.")


def _check_function(function: Any, place: str, form: str, inner: str = "", parameters: str = "parameters") -> None:
    """inner: where in the tool the function stands."""
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise refusal(place, f"must be {form}.")
    place += inner
    if type(function.get("strict")) not in (bool, type(None)):
        raise refusal(f"{place}.strict", "must be true or false.")
    if not isinstance(function.get(parameters), dict | None):
        raise refusal(f"{place}.{parameters}", "must be a JSON schema.")


def _chat_function(tool: Any, place: str) -> Tool:
    form = '{"type": "function", "function": {"name": ..., "parameters": ...}}'
    _check_kind(tool, place, ("function", None), form)
    _check_function(tool.get("function"), place, form, ".function")
    return dict(tool)


def _flat_function(tool: Any, place: str) -> dict[str, Any]:
    form = '{"type": "function", "name": ..., "parameters": ...}'
    _check_kind(tool, place, ("function",), form)
    _check_function(tool, place, form)
    return {name: value for name, value in tool.items() if name != "type"}


def _messages_tool(tool: Any, place: str, route: str) -> Tool:
    form = '{"name": ..., "input_schema": ...}'
    _check_kind(tool, place, ("custom", None), form)
    _check_function(tool, place, form, parameters="input_schema")
    check_fields(tool, Fields(("type", "cache_control", *_MESSAGES_FIELDS.values()), _MESSAGES_HINTS), route, place)
    function = {name: tool[field] for name, field in _MESSAGES_FIELDS.items() if tool.get(field) is not None}
    return {"type": "function", "function": function}


# What may be called.


def _chosen(any_given: bool, found: list[tuple[str, Tool]], given: Any, route: str) -> Tools:
    """found: the tools that can be served. any_given: whether there were any tools."""
    choice, allowed = _read_choice(given, route)
    if allowed is not None:
        known = {tool["function"]["name"] for _, tool in found}
        if missing := [name for name in allowed if name not in known]:
            raise refusal("tool_choice", f"allows {missing[0][:64]!r}, which is not in `tools`.")
        found = [(place, tool) for place, tool in found if tool["function"]["name"] in allowed]
    if isinstance(choice, dict):
        name = choice["function"]["name"]
        if not any(tool["function"]["name"] == name for _, tool in found):
            raise refusal("tool_choice", f"names {name[:64]!r}, which is not in `tools`.")
    if not found:
        if choice == "required":
            why = "asks for a call, and none of `tools` can be served here." if any_given else "needs `tools`."
            raise refusal("tool_choice", why)
        return Tools()
    return Tools([tool for _, tool in found], choice, tuple(place for place, _ in found))


def _read_choice(given: Any, route: str) -> tuple[Choice, list[str] | None]:
    """In a chat's form, and the names of the tools that it allows, if it lists them."""
    if given is None:
        return None, None
    if isinstance(given, str):
        if given not in _CHOICES:
            raise refusal("tool_choice", "must be none, auto, required, or a function of `tools`.")
        return _CHOICES[given], None
    if not isinstance(given, dict):
        raise refusal("tool_choice", "must be a text or an object.")
    if given.get("type") == "function":
        return {"type": "function", "function": {"name": _function_name(given, "tool_choice", route)}}, None
    if given.get("type") != "allowed_tools":
        kind = str(given.get("type"))[:64]
        raise refusal("tool_choice.type", f"{kind!r} is not supported: function and allowed_tools are.")
    place, inner = "tool_choice", given
    if isinstance(given.get("allowed_tools"), dict):
        place, inner = "tool_choice.allowed_tools", given["allowed_tools"]
        check_fields(given, Fields(("type", "allowed_tools")), route, "tool_choice")
    check_fields(inner, Fields(("type", "mode", "tools")), route, place)
    if inner.get("mode") not in _MODES:
        raise refusal(f"{place}.mode", "must be auto or required.")
    listed = inner.get("tools")
    if not isinstance(listed, list) or not listed:
        raise refusal(f"{place}.tools", "must list at least one tool.")
    names = usable(placed(listed, f"{place}.tools"), lambda tool, at: _allowed_name(tool, at, route), route)
    return inner["mode"], [name for _, name in names]


def _allowed_name(tool: Any, place: str, route: str) -> str:
    form = '{"type": "function", ...} with a name'
    _check_kind(tool, place, ("function",), form)
    return _function_name(tool, place, route)


def _function_name(given: dict[str, Any], place: str, route: str) -> str:
    """Of a function that is named under `function`, or beside its type, there also by its namespace."""
    inner = given.get("function")
    fields, held = (("name",), inner) if isinstance(inner, dict) else (("type", "name", "namespace"), given)
    check_fields(held, Fields(fields), route, f"{place}.function" if held is inner else place)
    name, namespace = held.get("name"), held.get("namespace")
    if not isinstance(name, str):
        raise refusal(f"{place}.name" if held is given else f"{place}.function.name", "must be a text.")
    return namespaced(namespace, name) if isinstance(namespace, str) else name
