"""Tiny random checkpoints, made on the spot: real architectures, a real byte-level tokenizer, weights of kilobytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 320
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = [
    "The quick brown fox jumps over the lazy dog while the engine keeps its promise to every request.",
    "Prefill writes the keys and values of a prompt; decode reads them again for every token that follows.",
]

CONFIGS: dict[str, type] = {
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
}
NEWER = {"ministral": "MinistralConfig", "seed_oss": "SeedOssConfig", "cwm": "CwmConfig"}
CONFIGS |= {family: getattr(transformers, name) for family, name in NEWER.items() if hasattr(transformers, name)}
"""Config classes by family: of those that the oldest transformers that tests run with lacks, where it is newer."""


def save_tokenizer(directory: Path, vocab_size: int = VOCAB_SIZE) -> None:
    """A byte-level BPE tokenizer with a chat template: any text round-trips."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    save_wrapped(tokenizer, CHAT_TEMPLATE, directory)


def save_wrapped(tokenizer: tokenizers.Tokenizer, chat_template: str, directory: Path) -> None:
    """A tokenizer as transformers keeps it."""
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=chat_template,
    ).save_pretrained(directory)


def make_checkpoint(directory: Path, family: str = "llama", *, seed: int = 0, **overrides: Any) -> Path:
    """Save a random model of `family` and its tokenizer in `directory`; `overrides` go into its config."""
    settings: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "initializer_range": 0.2,
        **overrides,
    }
    if family == "qwen3":
        settings.setdefault("head_dim", 32)
    directory.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[family](**settings)).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.2)
    model.save_pretrained(directory)
    save_tokenizer(directory)
    return directory
