"""Drafts as checkpoints, in the forms that users have.

    llama      config.json and model.safetensors of transformers' Llama
    eagle      public EAGLE: fc and layers.0; embeddings and output matrix are the target's
    eagle-nxdi the same with embed_tokens and lm_head inside, as NxD Inference wants them
    eagle3     midlayer, fc, norm, and an lm_head over a smaller vocabulary

`d2t`, int64 [draft vocabulary], maps its entry i to the target's id i + d2t[i]. EAGLE-3 checkpoints have it; here the
other forms may have it too, and then only those rows of the output matrix are computed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

from vllm.checkpoint import open_checkpoint
from vllm.checkpoint.tokenizer import load_tokenizer


def offsets_of(draft_ids: torch.Tensor) -> torch.Tensor:
    return draft_ids - torch.arange(len(draft_ids))


def save(
    directory: Path,
    config: transformers.LlamaConfig,
    tensors: Mapping[str, torch.Tensor],
    tokenizer_of: str | Path,
    draft_ids: torch.Tensor | None = None,
    **settings: Any,
) -> None:
    """Floats in bfloat16. settings: further keys of config.json. The tokenizer is the target's."""
    directory.mkdir(parents=True, exist_ok=True)
    stored = {name: tensor.bfloat16().contiguous() for name, tensor in tensors.items()}
    entries = config.to_dict() | {"torch_dtype": "bfloat16"} | settings
    if draft_ids is not None:
        stored["d2t"] = offsets_of(draft_ids)
        entries["draft_vocab_size"] = len(draft_ids)
    save_file(stored, directory / "model.safetensors", {"format": "pt"})
    _save_tokenizer(directory, tokenizer_of)
    (directory / "config.json").write_text(json.dumps(entries, indent=1))


def _save_tokenizer(directory: Path, source: str | Path) -> None:
    tokenizer = load_tokenizer(open_checkpoint(source))
    tokenizer.backend.save(str(directory / "tokenizer.json"))
    special = {name: str(token) for name, token in tokenizer.special_tokens.items()}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": tokenizer.chat_template, **special}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def eagle_tensors(head: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(head.state_dict())


def with_target(tensors: Mapping[str, torch.Tensor], target: transformers.LlamaForCausalLM) -> dict[str, torch.Tensor]:
    """NxD Inference's form: the target's embeddings and output matrix beside the head."""
    return {
        **tensors,
        "embed_tokens.weight": target.model.embed_tokens.weight,
        "lm_head.weight": target.lm_head.weight.clone(),
    }


def target_to_draft(draft_ids: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """EAGLE-3's `t2d`: which of the target's ids the draft knows."""
    known = torch.zeros(vocab_size, dtype=torch.bool)
    known[draft_ids] = True
    return known
