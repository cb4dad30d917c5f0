"""instructor: objects of pydantic classes, by tools and by JSON schema."""

from __future__ import annotations

from typing import Any, Literal

import pydantic
import pytest

from tests.server.process import ServerProcess

instructor = pytest.importorskip("instructor", reason="instructor is not installed")


class Person(pydantic.BaseModel):
    name: Literal["Ada", "Alan"]
    age: int = pydantic.Field(ge=0, le=150)


def _asked() -> dict[str, Any]:
    messages = [{"role": "user", "content": "Ada is 36."}]
    return {"model": "test-model", "messages": messages, "max_tokens": 200, "max_retries": 0}


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA"])
def test_object(server: ServerProcess, mode: str) -> None:
    client = instructor.from_openai(server.client(), mode=instructor.Mode[mode])
    assert isinstance(client.chat.completions.create(response_model=Person, **_asked()), Person)


async def test_async_and_partial_objects(server: ServerProcess) -> None:
    async with server.async_client() as http:
        client = instructor.from_openai(http, mode=instructor.Mode.JSON_SCHEMA)
        person = await client.chat.completions.create(response_model=Person, **_asked(), temperature=0)
        assert isinstance(person, Person)
    plain = instructor.from_openai(server.client(), mode=instructor.Mode.TOOLS)
    parts = list(plain.chat.completions.create_partial(response_model=Person, **_asked()))
    assert parts and Person(**parts[-1].model_dump())
