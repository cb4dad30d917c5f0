"""What crosses the sockets between the engine's process and those that serve users: msgpack, by msgspec, typed.

Every message is one frame, a tagged struct; nothing else is decoded, and nothing is ever unpickled.
"""

from __future__ import annotations

from typing import Any

import msgspec

from vllm.core.contract import BucketUse, Capabilities, PromptImages
from vllm.core.outputs import EngineCoreOutput, SchedulerStats
from vllm.core.request import Request
from vllm.core.work import Work, max_tokens
from vllm.engine.structured_outputs.matcher_tokenizer import GrammarTokenizer


class EngineCoreRequest(msgspec.Struct, tag="add", omit_defaults=True, gc=False):
    """A request, as the core takes it: tokens, and what to do with them, in which everything is resolved.

    arrival_time: monotonic seconds. grammar: of a structured output, as `structured_outputs.checker` let it through.
    front: the index of the front end that asks.
    """

    req_id: str
    prompt_token_ids: list[int]
    work: Work
    arrival_time: float = 0.0
    priority: int = 0
    lora_id: int = 0
    cache_salt: str | None = None
    grammar: str | None = None
    images: PromptImages | None = None
    front: int = 0

    @property
    def max_tokens(self) -> int | None:
        """Most output tokens; None: what the context holds."""
        return max_tokens(self.work)

    def to_request(self) -> Request:
        return Request(
            self.req_id,
            self.prompt_token_ids,
            self.work,
            self.arrival_time,
            self.priority,
            self.lora_id,
            self.cache_salt,
            has_grammar=self.grammar is not None,
            images=self.images,
            front=self.front,
        )


class Abort(msgspec.Struct, tag="abort"):
    req_ids: list[str]


class Call(msgspec.Struct, tag="call"):
    """Ask for one of `core.CALLS` by name; answered by a `Reply` with the same id, to the front that asked."""

    call_id: int
    method: str
    args: list[Any] = []
    front: int = 0


class Leave(msgspec.Struct, tag="leave"):
    """A front is gone: what it asked for is aborted, and nothing is sent to it any more."""

    front: int


class Shutdown(msgspec.Struct, tag="shutdown"):
    pass


class Starting(msgspec.Struct, tag="starting"):
    """How far the start has come; see `startup`."""

    phase: str
    share: float = 0.0
    detail: str = ""


class Ready(msgspec.Struct, tag="ready"):
    """The engine runs. executor_stats: start-up seconds, artifact, bytes by kind."""

    capabilities: Capabilities
    executor_stats: dict[str, Any]


class StepOutput(msgspec.Struct, tag="step", gc=False):
    """What a step (or an abort, or a refusal) brought. step_seconds: of the device's work.

    stalls: seconds for which running streams waited for prompts (`core.stalls`), where such a wait ended.
    """

    outputs: list[EngineCoreOutput] = []
    stats: SchedulerStats | None = None
    bucket_uses: list[BucketUse] = []
    step_seconds: float = 0.0
    num_tokens: int = 0
    stalls: list[float] = []


class Reply(msgspec.Struct, tag="reply"):
    call_id: int
    result: Any = None
    error: str | None = None


class Fatal(msgspec.Struct, tag="fatal"):
    """The engine ends; why."""

    message: str


class Heartbeat(msgspec.Struct, tag="beat"):
    """Sent several times a second. Both in seconds, as in `liveness.StepWatch`."""

    step_age: float = 0.0
    step_allowance: float = 0.0


ToCore = EngineCoreRequest | GrammarTokenizer | Abort | Call | Leave | Shutdown
FromCore = Starting | Ready | StepOutput | Reply | Fatal | Heartbeat

encoder = msgspec.msgpack.Encoder()
to_core_decoder: msgspec.msgpack.Decoder[ToCore] = msgspec.msgpack.Decoder(ToCore)
from_core_decoder: msgspec.msgpack.Decoder[FromCore] = msgspec.msgpack.Decoder(FromCore)
