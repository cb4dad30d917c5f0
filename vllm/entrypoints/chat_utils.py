"""From the messages of a chat request to what a chat template is given.

Any role is let through: templates decide which they know. Content is a text, null, or a list of parts; the parts
must be text, or images where the model takes them (`image_url` with a data: URL, or `image_pil`). Templates come in two
forms: most put `message.content` into the prompt as a string (the parts are then joined by newlines), some walk over a
list of parts ("openai"). `detect_content_format` tells which a template is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import jinja2
import jinja2.nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from vllm.engine.text.images import ImageIntake, image_from_url
from vllm.entrypoints.fields import Fields, check_fields
from vllm.entrypoints.model_json import decoded
from vllm.exceptions import VLLMValidationError

ContentFormat = Literal["string", "openai"]

_TEXT_PARTS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
    "reasoning_text": "text",
    "summary_text": "text",
}

_PART_LABELS = ("annotations", "cache_control", "logprobs")
"""Of a text that a model wrote, or that is to be cached."""


def parse_chat_messages(
    messages: list[Any], content_format: ContentFormat = "string", images: ImageIntake | None = None
) -> list[dict[str, Any]]:
    """The conversation for a template, one dict a message. Raises VLLMValidationError that names the faulty place.

    images: takes the images of the conversation, in order; None where there cannot be any.
    """
    if not isinstance(messages, list) or not messages:
        raise VLLMValidationError("`messages` must be a list of at least one message.", parameter="messages")
    return [_parse_message(message, f"messages[{i}]", content_format, images) for i, message in enumerate(messages)]


def _parse_message(
    message: Any, place: str, content_format: ContentFormat, images: ImageIntake | None
) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise VLLMValidationError(f"`{place}` must be an object with `role` and `content`.", parameter=place)
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise VLLMValidationError(f'`{place}.role` must be a text such as "user".', parameter=f"{place}.role")
    if message.get("content") is None and role != "assistant":
        raise VLLMValidationError(f"`{place}.content` is missing.", parameter=f"{place}.content")
    parsed = {name: value for name, value in message.items() if value is not None}
    parsed["content"] = _parse_content(message.get("content"), f"{place}.content", content_format, images)
    if "tool_calls" in parsed:
        parsed["tool_calls"] = _parse_tool_calls(parsed["tool_calls"], f"{place}.tool_calls")
    return parsed


def _parse_content(content: Any, place: str, content_format: ContentFormat, images: ImageIntake | None) -> Any:
    if content is None:
        return "" if content_format == "string" else []
    if isinstance(content, str):
        return content if content_format == "string" else [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise VLLMValidationError(f"`{place}` must be a text or a list of parts.", parameter=place)
    parts = [_parse_part(part, f"{place}[{i}]", content_format, images) for i, part in enumerate(content)]
    return "\n".join(part["text"] for part in parts) if content_format == "string" else parts


def _parse_part(part: Any, place: str, content_format: ContentFormat, images: ImageIntake | None) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if images is None or kind not in ("image_url", "image_pil"):
        return {"type": "text", "text": part_text(part, place)}
    if content_format == "string":
        raise VLLMValidationError(
            f"`{place}` is an image, and the chat template takes text only: it does not walk over parts.",
            parameter=place,
        )
    if kind == "image_pil":
        images.take(lambda: part.get("image_pil"), f"{place}.image_pil")
    else:
        given = part.get("image_url")
        url = given.get("url") if isinstance(given, dict) else given
        where = f"{place}.image_url.url"
        images.take(lambda: image_from_url(url, where), where)
    return {"type": "image"}


def part_text(part: Any, place: str, route: str = "chat") -> str:
    """The text that a part of a content is. `place` names it in errors, `route` in the log."""
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise VLLMValidationError(f"`{place}` must be an object with `type`.", parameter=place)
    kind = part.get("type", "text")
    field = _TEXT_PARTS.get(kind) if isinstance(kind, str) else None
    if field is None:
        raise VLLMValidationError(
            f"`{place}.type` {str(kind)[:32]!r} is not supported: this model takes text only.",
            parameter=f"{place}.type",
        )
    check_fields(part, Fields(("type", field, *_PART_LABELS)), route, place)
    return text_field(part, field, place)


def joined_text(content: Any, place: str, parts: str, of_part: Callable[[Any, str], str] = part_text) -> str:
    """A content that is a text or a list of parts, as lines. `parts` is what errors call them."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise VLLMValidationError(f"`{place}` must be a text or a list of {parts}.", parameter=place)
    return "\n".join(of_part(part, f"{place}[{i}]") for i, part in enumerate(content))


def text_field(item: Mapping[str, Any], name: str, place: str) -> str:
    """A field of `item`, which `place` names in errors, that must be a text."""
    value = item.get(name)
    if not isinstance(value, str):
        raise VLLMValidationError(f"`{place}.{name}` must be a text.", parameter=f"{place}.{name}")
    return value


def _parse_tool_calls(calls: Any, place: str) -> list[dict[str, Any]]:
    """Templates want the arguments as an object; clients send back the JSON text they were given."""
    if not isinstance(calls, list):
        raise VLLMValidationError(f"`{place}` must be a list.", parameter=place)
    return [_parse_tool_call(call, f"{place}[{i}].function") for i, call in enumerate(calls)]


def _parse_tool_call(call: Any, place: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise VLLMValidationError(f"`{place}` must be an object with `name` and `arguments`.", parameter=place)
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = decoded(arguments)
        except ValueError:
            raise VLLMValidationError(
                f"`{place}.arguments` is not valid JSON.", parameter=f"{place}.arguments"
            ) from None
    return {**call, "function": {**function, "arguments": arguments}}


def detect_content_format(template: str) -> ContentFormat:
    """ "openai" if the template loops over the parts of a message's content, else "string"."""
    try:
        tree = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"]).parse(template)
    except jinja2.TemplateSyntaxError:
        return "string"
    contents = set(_aliases_of_content(tree))
    loops = tree.find_all(jinja2.nodes.For)
    return "openai" if any(_is_content(loop.iter, contents) for loop in loops) else "string"


def _aliases_of_content(tree: jinja2.nodes.Template) -> Iterable[str]:
    for assignment in tree.find_all(jinja2.nodes.Assign):
        if isinstance(assignment.target, jinja2.nodes.Name) and _is_content(assignment.node, frozenset()):
            yield assignment.target.name


def _is_content(node: jinja2.nodes.Node, aliases: Iterable[str]) -> bool:
    """Whether an expression is `message.content`, `message["content"]`, a variable set to one, or a filter of it."""
    if isinstance(node, jinja2.nodes.Filter) and node.node is not None:
        return _is_content(node.node, aliases)
    if isinstance(node, jinja2.nodes.Name):
        return node.name in aliases
    if isinstance(node, jinja2.nodes.Getattr):
        return node.attr == "content"
    if isinstance(node, jinja2.nodes.Getitem):
        return isinstance(node.arg, jinja2.nodes.Const) and node.arg.value == "content"
    return False
