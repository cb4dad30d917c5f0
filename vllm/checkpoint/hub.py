"""From what a user calls a model to a local path: a directory, a file, or the snapshot of a hub repository."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from vllm.checkpoint.errors import CheckpointError
from vllm.checkpoint.files import parts_by_name
from vllm.checkpoint.kind import settled_directory

WEIGHTS = ["*.safetensors", "*.safetensors.index.json"]
SECOND_COPIES = ["consolidated*.safetensors", "original/*"]
"""Weights under the names of the model's authors, which some repositories hold beside those that are read."""
METADATA = [
    "config.json",
    "generation_config.json",
    "chat_template*",
    "additional_chat_templates/*",
    "*quant*_config.json",
    "adapter_config.json",
    "params.json",
]
"""What says what the weights mean, or that they are none."""
PROCESSOR = ["preprocessor_config.json", "processor_config.json"]
TOKENIZER = ["tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model"]

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+|[\w-][\w.-]*")
_HUB_FILE = re.compile(r"([\w.-]+/[\w.-]+)/(.+\.gguf)")


def local_path(
    name: str,
    *,
    patterns: list[str],
    revision: str | None = None,
    download_dir: str | None = None,
    token: str | None = None,
) -> Path:
    """Where `name` lies on this machine; only files that match `patterns` are fetched from the hub.

    A name is a path if something is there, else a hub id, `owner/name`, or a GGUF file in one, `owner/name/file.gguf`.
    """
    path = Path(name).expanduser()
    if path.exists():
        return settled_directory(path.resolve(), revision)
    if not (_HUB_ID.fullmatch(name) or _HUB_FILE.fullmatch(name)):
        raise CheckpointError(f"{name!r} does not exist, and is not a hub id either.{_nearest(path)}")
    return _download(name, patterns, revision, download_dir, token)


def _download(
    name: str, patterns: list[str], revision: str | None, download_dir: str | None, token: str | None
) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        if match := _HUB_FILE.fullmatch(name):
            paths = [
                huggingface_hub.hf_hub_download(match[1], file, revision=revision, cache_dir=download_dir, token=token)
                for file in parts_by_name(match[2])
            ]
            return Path(paths[0])
        return Path(
            huggingface_hub.snapshot_download(
                name,
                revision=revision,
                cache_dir=download_dir,
                token=token,
                allow_patterns=patterns,
                ignore_patterns=SECOND_COPIES,
            )
        )
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError) as error:
        raise CheckpointError(
            f"{name!r} is not a file or directory here, and the hub cannot be reached to download it as a hub id "
            f"({_first_line(error)}). Download it where there is a network (`hf download {name} --local-dir DIR`), "
            f"copy the directory here and pass its path.{_nearest(Path(name))}"
        ) from None
    except (HfHubHTTPError, HFValidationError) as error:
        raise CheckpointError(
            f"{name!r} is not a file or directory here, and the hub refused it as a hub id: {_first_line(error)}. "
            f"Check the spelling and the revision; a gated or private repository needs an access token (--hf-token)."
        ) from None


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__).rstrip(".")


def _nearest(path: Path) -> str:
    """What exists beside a path that does not."""
    if not path.parent.is_dir():
        return ""
    names = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    return f" Did you mean {path.parent / names[0]}?" if names else ""
