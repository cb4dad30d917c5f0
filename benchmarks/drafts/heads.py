"""EAGLE heads in torch, for training: parameters have the names of the public checkpoints.

Pair i is (the target's hidden state of token i - 1, token i); it stands at position i, and token 0 has a hidden state
of zeros. From pair i a head makes its own hidden state of token i, and from that the distribution of token i + 1. The
k-th draft has to work from the head's own hidden states, so training unrolls `steps` of them (as EAGLE-3 does): in
step j, position i reads what step j - 1 left at i - 1, and attends to the target's pairs up to i - j and to the heads'
own of the positions since.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

Cache = list[tuple[torch.Tensor, torch.Tensor]]


class Attention(nn.Module):
    """Causal attention with rotary positions over the keys of earlier steps and its own; `width` is the input's."""

    def __init__(self, config: transformers.LlamaConfig, width: int) -> None:
        super().__init__()
        self.head_dim, self.heads = config.head_dim, config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.q_proj = nn.Linear(width, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(width, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(width, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=False)
        theta = config.rope_parameters["rope_theta"]
        self.inv_freq = theta ** (-torch.arange(0, self.head_dim, 2) / self.head_dim)

    def forward(self, x: torch.Tensor, cache: Cache) -> torch.Tensor:
        """x [batch, length, width]. Appends this step's keys and values to the cache."""
        q = self._rotated(self._heads(self.q_proj(x), self.heads))
        k = self._rotated(self._heads(self.k_proj(x), self.kv_heads))
        v = self._heads(self.v_proj(x), self.kv_heads)
        group = self.heads // self.kv_heads
        cache.append((k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)))
        step, length = len(cache) - 1, x.shape[1]
        position = torch.arange(length)
        hidden = position[None, :] > position[:, None] - step
        scores = [(q @ cache[0][0].transpose(2, 3)).masked_fill(hidden, -torch.inf)]
        later = [(_delayed(k, step - i), _delayed(v, step - i)) for i, (k, v) in enumerate(cache) if i]
        scores += [(q * k).sum(-1, keepdim=True) for k, _ in later]
        weights = (torch.cat(scores, dim=-1) / math.sqrt(self.head_dim)).softmax(-1)
        y = weights[..., :length] @ cache[0][1]
        for i, (_, v) in enumerate(later):
            y = y + weights[..., length + i, None] * v
        return self.o_proj(y.transpose(1, 2).flatten(2))

    def _heads(self, x: torch.Tensor, count: int) -> torch.Tensor:
        return x.unflatten(2, (count, self.head_dim)).transpose(1, 2)

    def _rotated(self, x: torch.Tensor) -> torch.Tensor:
        angles = torch.arange(x.shape[2])[:, None] * self.inv_freq
        cos, sin = angles.cos(), angles.sin()
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _delayed(x: torch.Tensor, by: int) -> torch.Tensor:
    """What stood `by` positions before, [batch, heads, length, dim]."""
    return F.pad(x, (0, 0, by, 0))[:, :, : x.shape[2]] if by else x


class Layer(nn.Module):
    """A decoder layer. Attention reads `x`; what it adds is added to `residual`."""

    def __init__(self, config: transformers.LlamaConfig, width: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, width)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = LlamaMLP(config)

    def forward(self, x: torch.Tensor, residual: torch.Tensor, cache: Cache) -> torch.Tensor:
        residual = residual + self.self_attn(x, cache)
        return residual + self.mlp(self.post_attention_layernorm(residual))


class Head(nn.Module):
    """What training asks of a head."""

    def states(self, embeddings: torch.Tensor, features: torch.Tensor, steps: int) -> Iterator[torch.Tensor]:
        """The head's hidden states of every token after each unrolled step, ready for the output matrix."""
        raise NotImplementedError


class Eagle(Head):
    """fc(embedding, hidden) -> one decoder layer. `input_norm`: NxD Inference's `enable_eagle_draft_input_norm`."""

    def __init__(self, config: transformers.LlamaConfig, input_norm: bool = False) -> None:
        super().__init__()
        self.fc = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.layers = nn.ModuleList([Layer(config, config.hidden_size)])
        if input_norm:
            self.layers[0].input_layernorm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)

    def states(self, embeddings: torch.Tensor, features: torch.Tensor, steps: int) -> Iterator[torch.Tensor]:
        layer, cache, hidden = self.layers[0], Cache(), features
        for _ in range(steps):
            x = self.fc(torch.cat([embeddings, _previous(hidden)], dim=-1))
            normed = layer.input_layernorm(x) if hasattr(layer, "input_layernorm") else x
            hidden = layer(normed, x, cache)
            yield hidden


class Eagle3(Head):
    """fc(three hidden states) once; the layer reads norm(embedding) beside norm(hidden); an output norm of its own."""

    def __init__(self, config: transformers.LlamaConfig, draft_vocab_size: int) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * config.hidden_size, config.hidden_size, bias=False)
        self.midlayer = Layer(config, 2 * config.hidden_size)
        for name in ("input_layernorm", "hidden_norm"):
            setattr(self.midlayer, name, LlamaRMSNorm(config.hidden_size, config.rms_norm_eps))
        self.norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, draft_vocab_size, bias=False)

    def states(self, embeddings: torch.Tensor, features: torch.Tensor, steps: int) -> Iterator[torch.Tensor]:
        layer, cache, hidden = self.midlayer, Cache(), self.fc(features)
        for _ in range(steps):
            previous = _previous(hidden)
            x = torch.cat([layer.input_layernorm(embeddings), layer.hidden_norm(previous)], dim=-1)
            hidden = layer(x, previous, cache)
            yield self.norm(hidden)


class Shallow(Head):
    """A Llama of few layers as a head: it needs no features, and so no unrolling."""

    def __init__(self, model: transformers.LlamaForCausalLM) -> None:
        super().__init__()
        self.model = model

    def states(self, embeddings: torch.Tensor, features: torch.Tensor, steps: int) -> Iterator[torch.Tensor]:
        yield self.model.model(inputs_embeds=embeddings, use_cache=False).last_hidden_state


def _previous(hidden: torch.Tensor) -> torch.Tensor:
    """Each position's predecessor's, zeros at the first."""
    return F.pad(hidden, (0, 0, 1, 0))[:, :-1]
