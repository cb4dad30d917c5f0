"""From what a request holds (text, token ids, messages) to the token ids the engine is given; and back to text.

Long texts are tokenised, and templates rendered, in threads: the event loop goes on streaming meanwhile. A template
has a time limit, since it is a program.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, TypeVar

import jinja2

from vllm import envs
from vllm.core.contract import PromptImages
from vllm.engine.text.images import ImageIntake, ImagePreparer
from vllm.engine.text.limits import check_token_ids
from vllm.engine.text.logprobs import prompt_offsets
from vllm.entrypoints.chat_utils import ContentFormat, detect_content_format, parse_chat_messages
from vllm.entrypoints.fields import note
from vllm.entrypoints.openai.protocol.chat import TemplateFields
from vllm.entrypoints.template_fit import NOT_SHOWN, TemplateTraits, fitted, traits_of
from vllm.entrypoints.utils import DeadlineExceeded, run_with_deadline
from vllm.exceptions import VLLMClientError, VLLMValidationError

T = TypeVar("T")

_INLINE_CHARS = 1024
_INLINE_TOKENS = 256
_THREADS = 2


class RenderedPrompt(NamedTuple):
    """text: None when the request gave token ids. images: what stands for the placeholders among token_ids."""

    text: str | None
    token_ids: list[int]
    images: PromptImages | None = None


class PromptRenderer:
    """trust_request_template: whether requests may bring their own template.

    images: prepares the images of chats; None where the model takes none.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_model_len: int,
        vocab_size: int,
        content_format: str = "auto",
        default_template_kwargs: dict[str, Any] | None = None,
        trust_request_template: bool = False,
        images: ImagePreparer | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._max_model_len = max_model_len
        self._vocab_size = vocab_size
        self._content_format = content_format
        self._default_kwargs = default_template_kwargs or {}
        self._trust_request_template = trust_request_template
        self._images = images
        self._known: dict[str, tuple[ContentFormat, TemplateTraits]] = {}
        self._max_chars = max_model_len * _longest_token(tokenizer)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="render")

    @property
    def tokenizer(self) -> Any:
        if self._tokenizer is None:
            raise VLLMValidationError("This server has no tokenizer (--skip-tokenizer-init): give token ids.")
        return self._tokenizer

    @property
    def has_chat_template(self) -> bool:
        return bool(getattr(self._tokenizer, "chat_template", None))

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def render(
        self, prompt: str | list[int], add_special_tokens: bool, truncated: Literal["left", "right"] | None = None
    ) -> RenderedPrompt:
        """truncated: which end of a prompt that is too long is going to be cut off, if one is."""
        if not isinstance(prompt, str):
            check_token_ids(prompt, self._vocab_size, "prompt")
            return RenderedPrompt(None, prompt)
        return RenderedPrompt(prompt, await self.encode(self._bounded(prompt, truncated), add_special_tokens))

    async def render_chat(
        self,
        request: TemplateFields,
        extra_kwargs: dict[str, Any] | None = None,
        truncated: Literal["left", "right"] | None = None,
    ) -> RenderedPrompt:
        """Raises VLLMValidationError, jinja2.TemplateError or DeadlineExceeded."""
        template = self._template_of(request)
        content_format, traits = await self._traits_of(template, request.chat_template is None)
        images = ImageIntake(self._images.most) if self._images else None
        parsed = await self._run(
            lambda: parse_chat_messages(request.messages, content_format, images), images is not None
        )
        conversation = fitted(parsed, traits)
        if conversation != parsed:
            note(
                request.route,
                "messages",
                "are joined, or change their role, where the chat template would refuse or lose them",
            )
        if request.tools and not traits.tools:
            note(request.sent_to, "tools", NOT_SHOWN)
        tokenizer = self.tokenizer
        kwargs = {**self._default_kwargs, **(extra_kwargs or {}), **(request.chat_template_kwargs or {})}

        def apply() -> str:
            text = tokenizer.apply_chat_template(
                conversation,
                tools=request.tools,
                documents=request.documents,
                chat_template=template,
                add_generation_prompt=request.add_generation_prompt,
                continue_final_message=request.continue_final_message,
                tokenize=False,
                **kwargs,
            )
            return str(text)

        text = await self._run_template(apply)
        if images and images.images:
            return await self._render_with_images(text, images.images, request.add_special_tokens, truncated)
        return await self.render(text, request.add_special_tokens, truncated)

    async def _render_with_images(
        self, text: str, images: list[Any], add_special_tokens: bool, truncated: str | None
    ) -> RenderedPrompt:
        if truncated is not None:
            raise VLLMValidationError("A prompt with images cannot be cut.", parameter="truncate_prompt_tokens")
        preparer, bounded = self._images, self._bounded(text, None)
        if preparer is None:
            raise AssertionError("images were taken in, and nothing prepares them")
        token_ids, prepared = await self._run(
            lambda: preparer.prepare(bounded, images, add_special_tokens, "messages"), in_thread=True
        )
        return RenderedPrompt(text, token_ids, prepared)

    def _bounded(self, text: str, truncated: Literal["left", "right"] | None) -> str:
        """A text with more characters than the longest tokens could cover is not tokenised to be told that."""
        if len(text) <= self._max_chars:
            return text
        if truncated is not None:
            return text[-self._max_chars :] if truncated == "left" else text[: self._max_chars]
        raise VLLMValidationError(
            f"This model's maximum context length is {self._max_model_len} tokens. However, your prompt has "
            f"{len(text)} characters, which cannot fit. Shorten the prompt.",
            parameter="prompt",
        )

    async def _run_template(self, apply: Callable[[], T]) -> T:
        """What goes wrong inside a template, whatever it is, comes from the conversation."""
        try:
            return await run_with_deadline(self._threads, envs.VLLM_CHAT_TEMPLATE_RENDER_TIMEOUT, apply)
        except (VLLMClientError, DeadlineExceeded, jinja2.TemplateError):
            raise
        except Exception as error:
            raise jinja2.TemplateError(type(error).__name__) from error

    async def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        tokenizer = self.tokenizer
        return await self._run(
            lambda: list(tokenizer.encode(text, add_special_tokens=add_special_tokens)), len(text) > _INLINE_CHARS
        )

    async def decode(self, token_ids: list[int], skip_special_tokens: bool = False) -> str:
        tokenizer = self.tokenizer
        return await self._run(
            lambda: str(tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)),
            len(token_ids) > _INLINE_TOKENS,
        )

    async def offsets(self, text: str, token_ids: list[int], add_special_tokens: bool | None) -> list[int]:
        """As `prompt_offsets` has them."""
        tokenizer = self.tokenizer
        return await self._run(
            lambda: prompt_offsets(tokenizer, text, token_ids, add_special_tokens), len(text) > _INLINE_CHARS
        )

    async def _run(self, function: Callable[[], T], in_thread: bool) -> T:
        if not in_thread:
            return function()
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)

    def _template_of(self, request: TemplateFields) -> str:
        if request.chat_template is not None and not self._trust_request_template:
            raise VLLMValidationError(
                "`chat_template` is not taken from requests, unless the server has --trust-request-chat-template.",
                parameter="chat_template",
            )
        return str(self.tokenizer.get_chat_template(request.chat_template, request.tools))

    async def shows_tools(self) -> bool:
        """Whether the model's own template for conversations with tools does, as far as can be told."""
        template = str(self.tokenizer.get_chat_template(None, [{}]))
        try:
            _, traits = await self._traits_of(template, True)
        except DeadlineExceeded:
            return True
        return traits.tools

    async def _traits_of(self, template: str, is_own: bool) -> tuple[ContentFormat, TemplateTraits]:
        """is_own: whether the template is the server's, of which there are few."""
        if is_own and template in self._known:
            return self._known[template]
        given = self._content_format
        content_format: ContentFormat = detect_content_format(template) if given == "auto" else given  # type: ignore[assignment]
        variables = {**getattr(self.tokenizer, "special_tokens_map", {}), **self._default_kwargs}
        traits = await self._run_template(lambda: traits_of(template, content_format, variables))
        if is_own:
            self._known[template] = content_format, traits
        return content_format, traits


def _longest_token(tokenizer: Any) -> int:
    """In characters. No text of n tokens is longer than n times this."""
    return max(map(len, tokenizer.get_vocab()), default=1) if tokenizer is not None else 1
