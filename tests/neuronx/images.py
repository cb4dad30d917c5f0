"""A tiny Llama 4 with its processor, images to show it, and what Hugging Face's own model makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers

from tests import tiny

TILE, PATCH = 28, 7
TOKENS_PER_TILE = (TILE // PATCH) ** 2 // 4
MARKERS = ["<|image|>", "<|patch|>", "<|image_start|>", "<|image_end|>", "<|tile_x_separator|>", "<|tile_y_separator|>"]
PLACEHOLDER_ID = tiny.VOCAB_SIZE + MARKERS.index("<|patch|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|image|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_llama4(directory: Path, seed: int = 0) -> Path:
    """A random model of four layers, the last of which turns nothing, with four experts and a small vision encoder."""
    text = {
        "vocab_size": tiny.VOCAB_SIZE + len(MARKERS),
        "hidden_size": 64,
        "intermediate_size": 48,
        "intermediate_size_mlp": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 1,
        "no_rope_layers": [1, 1, 1, 0],
        "use_qk_norm": True,
        "attn_temperature_tuning": False,
        "attention_chunk_size": 4096,
        "max_position_embeddings": 512,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "initializer_range": 0.2,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "image_size": TILE,
        "patch_size": PATCH,
        "vision_output_dim": 48,
        "projector_input_dim": 48,
        "projector_output_dim": 48,
        "initializer_range": 0.2,
    }
    config = transformers.Llama4Config(
        text_config=text,
        vision_config=vision,
        image_token_index=PLACEHOLDER_ID,
        boi_token_index=tiny.VOCAB_SIZE + 2,
        eoi_token_index=tiny.VOCAB_SIZE + 3,
    )
    torch.manual_seed(seed)
    model = transformers.Llama4ForConditionalGeneration(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0.0, 0.2)
    model.save_pretrained(directory)
    _save_tokenizer(directory)
    return directory


def _save_tokenizer(directory: Path) -> None:
    tiny.save_tokenizer(directory)
    tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.add_special_tokens(MARKERS)
    tiny.save_wrapped(tokenizer, CHAT_TEMPLATE, directory)


def picture(seed: int, height: int = TILE, width: int = TILE) -> np.ndarray:
    """uint8 [height, width, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


class Reference:
    """transformers' own modules of Llama 4, greedily, without a cache."""

    def __init__(self, model: Path) -> None:
        network: Any = transformers.Llama4ForConditionalGeneration.from_pretrained(model, torch_dtype=torch.float32)
        self.network = network.eval()

    @torch.inference_mode()
    def generate(self, token_ids: list[int], pixels: np.ndarray | None, count: int) -> list[int]:
        known = list(token_ids)
        while len(known) < len(token_ids) + count:
            known.append(int(self._logits(known, len(token_ids), pixels)[0, -1].argmax()))
        return known[len(token_ids) :]

    def _logits(self, token_ids: list[int], num_prompt_tokens: int, pixels: np.ndarray | None) -> torch.Tensor:
        ids = torch.tensor([token_ids])
        hidden = self.network.language_model.get_input_embeddings()(ids)
        if pixels is not None:
            features = self.network.vision_model(torch.from_numpy(pixels)).last_hidden_state
            features = self.network.multi_modal_projector(features.flatten(0, 1))
            placeholders = ids == PLACEHOLDER_ID
            placeholders[:, num_prompt_tokens:] = False
            hidden = hidden.masked_scatter(placeholders[..., None], features)
        logits: torch.Tensor = self.network.language_model(inputs_embeds=hidden, use_cache=False).logits
        return logits
