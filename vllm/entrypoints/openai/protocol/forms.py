"""Routes whose body has one of two forms: a chat where it has `messages`, else a completion."""

from __future__ import annotations

from typing import Any

CHAT_FORM, COMPLETION_FORM = "{chat}", "{completion}"
"""Tags of the forms, which pydantic puts into the place of a fault as if they were fields. No field has such a name."""


def prompt_form(value: Any) -> str:
    """value: a JSON value, or the request that was made of one."""
    is_chat = "messages" in value if isinstance(value, dict) else hasattr(value, "messages")
    return CHAT_FORM if is_chat else COMPLETION_FORM
