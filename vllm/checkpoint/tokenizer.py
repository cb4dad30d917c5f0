"""`load_tokenizer`: text to ids and back, from tokenizer.json or out of a GGUF file, without transformers.

`encode(text, add_special_tokens=True)` of the backend puts bos and eos where the model wants them: as tokenizer.json
says, which goes before flags in tokenizer_config.json, or the metadata of a GGUF file. It neither truncates nor pads.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, processors

from vllm.checkpoint import hub
from vllm.checkpoint.chat_templates import ChatTemplate, directory_templates, gguf_templates
from vllm.checkpoint.checkpoint import Checkpoint
from vllm.checkpoint.errors import CheckpointError
from vllm.checkpoint.files import find_weights, read_json
from vllm.checkpoint.gguf_file import GgufFile, read_gguf
from vllm.checkpoint.gguf_tokenizer import adds_bos, build_gguf_tokenizer, token_at
from vllm.checkpoint.kind import is_gguf, note_or_page
from vllm.checkpoint.tokenizer_config import read_tokenizer_config

_MAX_ID = 2**32
_SLOW_FILES = ("tokenizer.model", "vocab.json", "spiece.model")


@dataclass(slots=True)
class TokenizerData:
    """A tokenizer and what goes with it.

    special_tokens: the text of "bos_token", "eos_token", "pad_token", "unk_token", those that exist; for templates.
    special_ids: every id that skip_special_tokens leaves out.
    chat_template: the template's text, or several by name; None if there is none.
    model_max_length: tokens, None if the checkpoint sets no limit.
    """

    backend: tokenizers.Tokenizer
    special_tokens: dict[str, str] = field(default_factory=dict)
    chat_template: ChatTemplate | None = None
    add_bos_token: bool = False
    add_eos_token: bool = False
    model_max_length: int | None = None

    @property
    def bos_token_id(self) -> int | None:
        return self._named_id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        return self._named_id("eos_token")

    @property
    def pad_token_id(self) -> int | None:
        return self._named_id("pad_token")

    @property
    def unk_token_id(self) -> int | None:
        return self._named_id("unk_token")

    @property
    def special_ids(self) -> frozenset[int]:
        return frozenset(i for i, token in self.backend.get_added_tokens_decoder().items() if token.special)

    def _named_id(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        return None if token is None else self.backend.token_to_id(token)

    def save(self, directory: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, from which `load_tokenizer` gives an equal tokenizer."""
        config: dict[str, Any] = {**self.special_tokens}
        if self.chat_template is not None:
            config["chat_template"] = _written(self.chat_template)
        if self.model_max_length is not None:
            config["model_max_length"] = self.model_max_length
        self.backend.save(str(directory / "tokenizer.json"))
        (directory / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False, indent=1))


def load_tokenizer(
    source: Checkpoint | str | Path,
    *,
    revision: str | None = None,
    download_dir: str | None = None,
    token: str | None = None,
) -> TokenizerData:
    """The tokenizer of a checkpoint, or of a directory, a tokenizer.json, a GGUF file, or a hub id.

    Raises CheckpointError if there is none, with what would work.
    """
    if isinstance(source, Checkpoint):
        return _from_checkpoint(source)
    path = hub.local_path(
        str(source), patterns=hub.METADATA + hub.TOKENIZER, revision=revision, download_dir=download_dir, token=token
    )
    if path.is_file() and not is_gguf(path):
        path = path.parent
    if path.is_file() or not any((path / name).is_file() for name in ("tokenizer.json", *_SLOW_FILES)):
        found = find_weights(path, "gguf")
        if found.files:
            return _from_gguf(read_gguf(found.files[0]))
    return _from_directory(path, read_json(path / "config.json"))


def check_same_tokens(target: Checkpoint, draft: Checkpoint) -> None:
    """Raises CheckpointError if a draft's tokenizer gives other ids than its target's. One without its own is fine."""
    if draft.gguf is None and not any((draft.path / name).is_file() for name in ("tokenizer.json", *_SLOW_FILES)):
        return
    files = [checkpoint.path / "tokenizer.json" for checkpoint in (target, draft)]
    if all(file.is_file() for file in files) and files[0].read_bytes() == files[1].read_bytes():
        return
    ours, its = (_from_checkpoint(checkpoint).backend.get_vocab() for checkpoint in (target, draft))
    differing = sorted(token for token in ours.keys() | its.keys() if ours.get(token) != its.get(token))
    if differing:
        token = differing[0]
        raise CheckpointError(
            f"the draft {draft.path} has another tokenizer than its target: {len(differing)} tokens differ, such as "
            f"{token!r}, which is {its.get(token, 'missing')} there and {ours.get(token, 'missing')} in {target.path}. "
            "Choose a draft of the same family"
        )


def _from_checkpoint(checkpoint: Checkpoint) -> TokenizerData:
    if checkpoint.gguf is not None:
        return _from_gguf(checkpoint.gguf)
    return _from_directory(checkpoint.path, checkpoint.config)


def _from_directory(path: Path, model_config: dict[str, Any]) -> TokenizerData:
    backend = _read_backend(path)
    backend.no_truncation()
    backend.no_padding()
    config = read_tokenizer_config(path)
    special_tokens = config.special_tokens
    for name in ("bos_token", "eos_token"):
        if not config.entries and (text := _token_of_id(backend, model_config, name)):
            special_tokens.setdefault(name, text)
    _add_missing_tokens(backend, special_tokens, config.added_tokens)
    template_json = read_json(path / "chat_template.json").get("chat_template")
    data = TokenizerData(
        backend,
        special_tokens,
        chat_template=directory_templates(path, config.entries, template_json),
        model_max_length=config.model_max_length,
    )
    _read_post_processor(data)
    return data


def _from_gguf(file: GgufFile) -> TokenizerData:
    metadata = file.metadata
    names = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    try:
        backend = build_gguf_tokenizer(metadata)
        special_tokens = {name: text for name, key in names.items() if (text := token_at(metadata, key))}
    except CheckpointError as error:
        raise CheckpointError(f"{file.path}: {error}") from None
    backend.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special_tokens.values()])
    data = TokenizerData(backend, special_tokens, chat_template=gguf_templates(metadata))
    _set_post_processor(data, adds_bos(metadata), bool(metadata.get("tokenizer.ggml.add_eos_token", False)))
    _read_post_processor(data)
    return data


def _written(template: ChatTemplate) -> Any:
    """As tokenizer_config.json has it."""
    if isinstance(template, str):
        return template
    return [{"name": name, "template": text} for name, text in template.items()]


def _read_backend(path: Path) -> tokenizers.Tokenizer:
    file = path / "tokenizer.json"
    if file.is_file():
        try:
            return tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises plain Exception
            raise CheckpointError(f"{file} is not a usable tokenizer: {note_or_page(file) or error}") from None
    found = [name for name in _SLOW_FILES if (path / name).is_file()]
    if not found:
        instead = "; its tekken.json, in Mistral's own format, is not read" if (path / "tekken.json").is_file() else ""
        raise CheckpointError(
            f"{path} holds no tokenizer.json{instead}. Pass a tokenizer (--tokenizer DIR) or --skip-tokenizer-init"
        )
    return _converted(path, found[0])


def _converted(path: Path, file_name: str) -> tokenizers.Tokenizer:
    """Older forms are converted by transformers, which reads them all."""
    try:
        import transformers
    except ImportError:
        raise CheckpointError(
            f"{path / file_name} must be converted to a tokenizer.json first, which takes transformers (not "
            "installed): `AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)`"
        ) from None
    try:
        backend: tokenizers.Tokenizer = transformers.AutoTokenizer.from_pretrained(path).backend_tokenizer
    except Exception as error:
        raise CheckpointError(f"transformers cannot convert {path / file_name}: {error}") from error
    return backend


def _token_of_id(backend: tokenizers.Tokenizer, model_config: dict[str, Any], name: str) -> str | None:
    ids = model_config.get(f"{name}_id")
    first = ids[0] if isinstance(ids, list) and ids else ids
    return backend.id_to_token(first) if isinstance(first, int) and 0 <= first < _MAX_ID else None


def _add_missing_tokens(backend: tokenizers.Tokenizer, named: dict[str, str], added: list[AddedToken]) -> None:
    """Tokens that the configuration knows and tokenizer.json does not mark."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    for token in added:
        if token.content not in known:
            backend.add_tokens([token])
            known.add(token.content)
    backend.add_special_tokens([AddedToken(text, special=True) for text in named.values() if text not in known])


def _set_post_processor(data: TokenizerData, add_bos: bool, add_eos: bool) -> None:
    bos = data.special_tokens.get("bos_token") if add_bos else None
    eos = data.special_tokens.get("eos_token") if add_eos else None
    template = [*([bos] if bos else []), "$A", *([eos] if eos else [])]
    data.backend.post_processor = processors.TemplateProcessing(
        single=template,
        special_tokens=[(text, data.backend.token_to_id(text)) for text in (bos, eos) if text],
    )


def _read_post_processor(data: TokenizerData) -> None:
    """Whether bos and eos are added, as the backend itself does it."""
    ids = data.backend.encode("").ids
    data.add_bos_token = bool(ids) and ids[0] == data.bos_token_id
    data.add_eos_token = bool(ids) and ids[-1] == data.eos_token_id and (len(ids) > 1 or not data.add_bos_token)
