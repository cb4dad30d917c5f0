"""EAGLE heads for tests: random checkpoints in every form, and an oracle that drafts with torch and no cache at all.

The oracle is made of transformers' own decoder layer and attention, runs whole sequences anew for every draft, and
shares nothing with the package but the pairs that `vllm/targets/cpu/models/eagle.py` defines.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

from tests.tiny import VOCAB_SIZE


class Head(nn.Module):
    """An EAGLE head in torch. method: "eagle" or "eagle3"."""

    def __init__(self, config: transformers.LlamaConfig, method: str, *, bias: bool, input_norm: bool) -> None:
        super().__init__()
        self.method, width = method, config.hidden_size
        self.fc = nn.Linear((3 if method == "eagle3" else 2) * width, width, bias=bias)
        self.layer = LlamaDecoderLayer(config, 0)
        self.rotary = LlamaRotaryEmbedding(config)
        if method == "eagle3":
            attention = self.layer.self_attn
            for name in ("q_proj", "k_proj", "v_proj"):
                rows = getattr(attention, name).out_features
                setattr(attention, name, nn.Linear(2 * width, rows, bias=False))
            self.hidden_norm = LlamaRMSNorm(width, config.rms_norm_eps)
            self.norm = LlamaRMSNorm(width, config.rms_norm_eps)
        elif not input_norm:
            self.layer.input_layernorm = nn.Identity()

    def states(self, embeddings: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Made states [length, width] of pairs, whose hidden states are the target's (eagle3: behind fc) or made."""
        length = len(embeddings)
        mask = torch.full((length, length), -torch.inf).triu(1)[None, None]
        layer = self.layer
        angles = self.rotary(embeddings[None], torch.arange(length)[None])
        if self.method == "eagle":
            x = self.fc(torch.cat([embeddings, hidden], -1))[None]
            read, residual = layer.input_layernorm(x), x
        else:
            read = torch.cat([layer.input_layernorm(embeddings), self.hidden_norm(hidden)], -1)[None]
            residual = hidden[None]
        attended, _ = layer.self_attn(hidden_states=read, position_embeddings=angles, attention_mask=mask)
        residual = residual + attended
        return (residual + layer.mlp(layer.post_attention_layernorm(residual)))[0]


def target_config(target: Path) -> transformers.LlamaConfig:
    config = transformers.LlamaConfig.from_pretrained(target)
    config._attn_implementation = "eager"
    return config


def make_eagle(
    directory: Path,
    target: Path,
    method: str = "eagle",
    *,
    form: str = "public",
    bias: bool = False,
    input_norm: bool = False,
    draft_vocab: int = 0,
    prefix: str = "",
    seed: int = 0,
) -> Path:
    """Save a random head for the checkpoint in `target`.

    form: "public", or "nxdi" with embeddings and output matrix inside. draft_vocab: size of a smaller vocabulary, 0 for
    the target's. prefix: of tensor names.
    """
    torch.manual_seed(seed)
    config = target_config(target)
    head = Head(config, method, bias=bias, input_norm=input_norm)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            _ = parameter.uniform_(0.5, 1.5) if "norm" in name else parameter.normal_(0.0, 0.2)
    layer = "midlayer." if method == "eagle3" else "layers.0."
    tensors = {name.replace("layer.", layer, 1): value for name, value in head.state_dict().items()}
    tensors = {
        f"{layer}{name}" if name.startswith("hidden_norm") else name: value
        for name, value in tensors.items()
        if "inv_freq" not in name
    }
    settings: dict[str, Any] = config.to_dict() | {"num_hidden_layers": 1, "architectures": ["LlamaForCausalLM"]}
    targets = load_file(target / "model.safetensors")
    if form == "nxdi":
        tensors["embed_tokens.weight"] = targets["model.embed_tokens.weight"].flip(1)
        tensors["lm_head.weight"] = targets["lm_head.weight"].flip(0)
    if method == "eagle3":
        settings["architectures"] = ["LlamaForCausalLMEagle3"]
        rows = draft_vocab or VOCAB_SIZE
        tensors["lm_head.weight"] = torch.randn(rows, config.hidden_size) * 0.2
    if draft_vocab:
        ids = torch.randperm(VOCAB_SIZE)[:draft_vocab].sort().values
        tensors["d2t"] = ids - torch.arange(draft_vocab)
        settings["draft_vocab_size"] = draft_vocab
    directory.mkdir(parents=True, exist_ok=True)
    save_file({prefix + name: value.contiguous() for name, value in tensors.items()}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(settings))
    return directory


class Oracle:
    """Drafts of the head in `draft` for the model in `target`, greedily."""

    def __init__(self, target: Path, draft: Path, method: str) -> None:
        self.target = transformers.AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
        stored = {name.removeprefix("model."): value for name, value in load_file(draft / "model.safetensors").items()}
        tensors = {name.replace("midlayer.", "layers.0."): value for name, value in stored.items()}
        has_norm = "layers.0.input_layernorm.weight" in tensors
        self.head = Head(target_config(target), method, bias="fc.bias" in tensors, input_norm=has_norm).eval()
        own = self.head.state_dict()
        for name in own:
            if "inv_freq" not in name:
                source = name.replace("layer.", "layers.0.", 1) if name.startswith("layer.") else name
                source = f"layers.0.{source}" if source.startswith("hidden_norm") else source
                own[name] = tensors[source]
        self.head.load_state_dict(own)
        self.method = method
        embedding = self.target.get_input_embeddings().weight
        output = self.target.get_output_embeddings().weight
        self.embedding = tensors.get("embed_tokens.weight", embedding)
        self.output = tensors.get("lm_head.weight", output)
        self.ids = torch.arange(VOCAB_SIZE)
        if "d2t" in tensors:
            self.ids = tensors["d2t"] + torch.arange(len(tensors["d2t"]))
            self.output = self.output if len(self.output) == len(self.ids) else self.output[self.ids]

    @torch.inference_mode()
    def hidden(self, tokens: list[int]) -> torch.Tensor:
        """What the target knows of each token, as the head reads it."""
        states = self.target.model(torch.tensor([tokens]), output_hidden_states=True).hidden_states
        if self.method == "eagle":
            return states[-1][0]
        layers = len(states) - 1
        return self.head.fc(torch.cat([states[i][0] for i in (2, layers // 2, layers - 3)], -1))

    @torch.inference_mode()
    def drafts(self, tokens: list[int], count: int, allowed: list[int] | None = None) -> list[int]:
        """What follows `tokens`, of which the target has computed all but the last. allowed: ids to choose from."""
        tokens, found = list(tokens), []
        zeros = torch.zeros(1, self.target.config.hidden_size)
        hidden = torch.cat([zeros, self.hidden(tokens[:-1])] if len(tokens) > 1 else [zeros])
        for _ in range(count):
            made = self.head.states(self.embedding[tokens], hidden)[-1:]
            read = self.head.norm(made) if self.method == "eagle3" else made
            logits = torch.full((VOCAB_SIZE,), torch.finfo(torch.float32).min)
            logits[self.ids] = (read @ self.output.T)[0]
            token = _greedy(logits, allowed)
            found.append(token)
            tokens, hidden = [*tokens, token], torch.cat([hidden, made])
        return found

    @torch.inference_mode()
    def next_token(self, tokens: list[int], allowed: list[int] | None = None) -> int:
        return _greedy(self.target(torch.tensor([tokens])).logits[0, -1], allowed)

    def generate(
        self, prompt: list[int], length: int, count: int, allowed: list[int] | None = None
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """`length` tokens with `count` drafts a step: the text, and of every step how many were drafted and accepted.

        The first token comes with the prompt. No more is drafted than can become text.
        """
        text = [self.next_token(prompt, allowed)]
        steps: list[tuple[int, int]] = []
        while len(text) < length:
            drafts = self.drafts(prompt + text, min(count, length - len(text) - 1), allowed)
            accepted = 0
            while accepted < len(drafts) and drafts[accepted] == self.next_token(prompt + text, allowed):
                text.append(drafts[accepted])
                accepted += 1
            text.append(self.next_token(prompt + text, allowed))
            if drafts:
                steps.append((len(drafts), accepted))
        return text, steps


def _greedy(logits: torch.Tensor, allowed: list[int] | None) -> int:
    ids = torch.arange(len(logits)) if allowed is None else torch.tensor(allowed)
    return int(ids[logits[ids].argmax()])
