"""What `LLM.get_tokenizer()` gives: text to token ids and back, and chat templates, without transformers.

The methods are those that programs call on a transformers tokenizer, with its defaults.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import tokenizers

from vllm.checkpoint.chat_templates import DEFAULT, TOOL_USE, ChatTemplate
from vllm.checkpoint.checkpoint import Checkpoint
from vllm.checkpoint.tokenizer import TokenizerData, load_tokenizer
from vllm.engine.text.chat_template import Message, render_chat
from vllm.exceptions import VLLMValidationError

_NO_LIMIT = int(1e30)


class Encoding(dict[str, Any]):
    """What calling a tokenizer gives: `input_ids` and `attention_mask`, as entries and as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Tokenizer:
    """A checkpoint's tokenizer.

    chat_template: the template's text, or several by name, or None. truncation_side: which end `truncation` cuts off.
    """

    is_fast = True
    padding_side = "right"

    def __init__(self, data: TokenizerData, *, chat_template: str | None = None, name_or_path: str = "") -> None:
        self.backend_tokenizer: tokenizers.Tokenizer = data.backend
        self.chat_template: ChatTemplate | None = chat_template or data.chat_template
        self.name_or_path = name_or_path
        self.truncation_side = "right"
        self.special_tokens_map = dict(data.special_tokens)
        self.model_max_length = data.model_max_length or _NO_LIMIT
        self.add_bos_token = data.add_bos_token
        self.add_eos_token = data.add_eos_token
        self.bos_token_id = data.bos_token_id
        self.eos_token_id = data.eos_token_id
        self.pad_token_id = data.pad_token_id
        self.unk_token_id = data.unk_token_id
        self.special_ids = data.special_ids
        self._token_texts: dict[int, str] = {}

    @classmethod
    def load(cls, source: Checkpoint | str, *, chat_template: str | None = None, **hub_options: Any) -> Tokenizer:
        """The tokenizer of a checkpoint, or of a directory, file or hub id; hub_options as in `load_tokenizer`."""
        path = str(source.path if isinstance(source, Checkpoint) else source)
        return cls(load_tokenizer(source, **hub_options), chat_template=chat_template, name_or_path=path)

    def __repr__(self) -> str:
        return f"Tokenizer({self.name_or_path!r}, {len(self)} tokens)"

    def __len__(self) -> int:
        """Tokens of the vocabulary, added ones too."""
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=True)

    # Text to ids.

    def encode(
        self,
        text: str,
        text_pair: str | None = None,
        add_special_tokens: bool = True,
        truncation: bool = False,
        max_length: int | None = None,
    ) -> list[int]:
        source = text if text_pair is None else (text, text_pair)
        (encoded,) = self.backend_tokenizer.encode_batch_fast([source], add_special_tokens=add_special_tokens)
        ids: list[int] = encoded.ids
        return self._truncated(ids, max_length) if truncation else ids

    def __call__(
        self,
        text: str | Sequence[str],
        add_special_tokens: bool = True,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: None = None,
    ) -> Encoding:
        """Encode a text, or each of several. Lists only: no padding and no tensors."""
        if return_tensors is not None:
            raise ValueError(f"return_tensors={return_tensors!r} is not supported: the tokenizer gives lists")
        if isinstance(text, str):
            ids = self.encode(text, None, add_special_tokens, truncation, max_length)
            return Encoding(input_ids=ids, attention_mask=[1] * len(ids))
        batch = self.backend_tokenizer.encode_batch(list(text), add_special_tokens=add_special_tokens)
        rows = [self._truncated(row.ids, max_length) if truncation else row.ids for row in batch]
        return Encoding(input_ids=rows, attention_mask=[[1] * len(row) for row in rows])

    def tokenize(self, text: str, add_special_tokens: bool = False) -> list[str]:
        tokens: list[str] = self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).tokens
        return tokens

    def _truncated(self, ids: list[int], max_length: int | None) -> list[int]:
        limit = self.model_max_length if max_length is None else max_length
        if len(ids) <= limit:
            return ids
        return ids[-limit:] if self.truncation_side == "left" and limit else ids[:limit]

    # Ids to text.

    def decode(
        self,
        token_ids: int | Sequence[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        spaces_between_special_tokens: bool = True,
    ) -> str:
        """The text of some tokens. Ids of no token give no text."""
        if clean_up_tokenization_spaces:
            raise ValueError("clean_up_tokenization_spaces=True is not supported: it changes what was generated")
        ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        text: str = self.backend_tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        return text

    def batch_decode(self, sequences: Iterable[Sequence[int]], skip_special_tokens: bool = False) -> list[str]:
        return [self.decode(ids, skip_special_tokens) for ids in sequences]

    def token_text(self, token_id: int) -> str:
        """The text of one token by itself, remembered."""
        text = self._token_texts.get(token_id)
        if text is None:
            text = self._token_texts[token_id] = self.decode(token_id)
        return text

    # Tokens and ids.

    def convert_ids_to_tokens(self, ids: int | Sequence[int], skip_special_tokens: bool = False) -> Any:
        """The token of an id, or the list of those of several; None for an id of no token."""
        if isinstance(ids, int):
            return self.backend_tokenizer.id_to_token(ids)
        skipped = self.special_ids if skip_special_tokens else frozenset()
        return [self.backend_tokenizer.id_to_token(token_id) for token_id in ids if token_id not in skipped]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The id of a token, or the list of those of several; the unknown token's (or None) where there is none."""
        if isinstance(tokens, str):
            token_id = self.backend_tokenizer.token_to_id(tokens)
            return self.unk_token_id if token_id is None else token_id
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        decoder = self.backend_tokenizer.decoder
        return decoder.decode(list(tokens)) if decoder is not None else " ".join(tokens)

    def get_vocab(self) -> dict[str, int]:
        return dict(self.backend_tokenizer.get_vocab(with_added_tokens=True))

    def get_added_vocab(self) -> dict[str, int]:
        return {token.content: i for i, token in self.backend_tokenizer.get_added_tokens_decoder().items()}

    @property
    def vocab(self) -> dict[str, int]:
        return self.get_vocab()

    @property
    def vocab_size(self) -> int:
        """Tokens of the vocabulary, without added ones."""
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=False)

    @cached_property
    def max_token_id(self) -> int:
        """The highest id in use; ids below it may have no token."""
        return max(self.backend_tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)

    @property
    def all_special_ids(self) -> list[int]:
        return sorted(self.special_ids)

    @property
    def all_special_tokens(self) -> list[str]:
        return [token for i in self.all_special_ids if (token := self.backend_tokenizer.id_to_token(i)) is not None]

    @property
    def bos_token(self) -> str | None:
        return self.special_tokens_map.get("bos_token")

    @property
    def eos_token(self) -> str | None:
        return self.special_tokens_map.get("eos_token")

    @property
    def pad_token(self) -> str | None:
        return self.special_tokens_map.get("pad_token")

    @property
    def unk_token(self) -> str | None:
        return self.special_tokens_map.get("unk_token")

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        return int(self.backend_tokenizer.num_special_tokens_to_add(pair))

    # Chats.

    def get_chat_template(
        self, chat_template: str | None = None, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> str:
        """The text of the template that is used: the given one, the one of the given name, or the tokenizer's.

        Of several, `tool_use` is for conversations with tools, `default` for all others. Raises VLLMValidationError if
        there is none.
        """
        known = self.chat_template if isinstance(self.chat_template, dict) else {}
        if chat_template is not None:
            return known.get(chat_template, chat_template)
        if isinstance(self.chat_template, str):
            return self.chat_template
        if tools and TOOL_USE in known:
            return known[TOOL_USE]
        if DEFAULT in known:
            return known[DEFAULT]
        if known:
            for_tools = " `tools`, or" if TOOL_USE in known else ""
            raise VLLMValidationError(
                f"this model has chat templates by name ({', '.join(known)}) and no default one: give{for_tools} a "
                "template (--chat-template FILE).",
                parameter="chat_template",
            )
        raise VLLMValidationError(
            "this model has no chat template: pass one (--chat-template FILE), or use completions.",
            parameter="chat_template",
        )

    def apply_chat_template(
        self,
        conversation: Sequence[Message] | Sequence[Sequence[Message]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        truncation: bool = False,
        max_length: int | None = None,
        return_dict: bool = False,
        **variables: Any,
    ) -> Any:
        """The prompt of a conversation (or of each of several) as token ids, or as text without `tokenize`.

        variables: further names for the template. Raises jinja2.TemplateError where the template or its
        `raise_exception` fails.
        """
        source = self.get_chat_template(chat_template, tools)
        several = bool(conversation) and not isinstance(conversation[0], Mapping)
        conversations: Any = conversation if several else [conversation]
        texts = [
            render_chat(
                source,
                messages,
                tools=tools,
                documents=documents,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                variables={**self.special_tokens_map, **variables},
            )
            for messages in conversations
        ]
        if not tokenize:
            return texts if several else texts[0]
        encoded = self(texts if several else texts[0], False, truncation, max_length)
        return encoded if return_dict else encoded["input_ids"]
