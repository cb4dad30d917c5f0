"""A small target, trained from nothing on the language reference: six layers, a byte-level vocabulary of 1024."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers, trainers

from drafts import corpus

VOCAB_SIZE = 1024
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
UPDATES, WINDOW, BATCH = 300, 128, 8
CONFIG = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6,
    "num_attention_heads": 6, "num_key_value_heads": 3, "max_position_embeddings": 1024, "tie_word_embeddings": True,
    "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def train_tiny_target(cache: Path) -> Path:
    """Its directory, made unless it is there."""
    directory = cache / f"tiny-target-{UPDATES}"
    if not (directory / "trained.json").exists():
        texts = corpus.training().texts
        tokenizer = _save_tokenizer(directory, texts)
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG))
        ids = torch.tensor([token for text in texts for token in [*tokenizer.encode(text).ids, 0]])
        loss = _train(model, ids)
        model.save_pretrained(directory)
        (directory / "trained.json").write_text(json.dumps({"loss": loss, "tokens": len(ids)}))
    return directory


def _train(model: transformers.LlamaForCausalLM, ids: torch.Tensor) -> float:
    """Next-token prediction on windows at random. The last loss, smoothed."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05, betas=(0.9, 0.95))
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=UPDATES, pct_start=0.1)
    shown = 0.0
    for update in range(UPDATES):
        starts = torch.randint(len(ids) - WINDOW, (BATCH,))
        batch = torch.stack([ids[start : start + WINDOW] for start in starts.tolist()])
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        shown = loss.item() if not update else 0.95 * shown + 0.05 * loss.item()
        if update % 50 == 0:
            print(f"tiny target: update {update} of {UPDATES}, loss {shown:.3f}", flush=True)
    return shown


def _save_tokenizer(directory: Path, texts: list[str]) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|im_end|>", pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(directory)  # fmt: skip
    return tokenizer
