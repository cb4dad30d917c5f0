"""Llama and its near relatives: static graphs that read the KV cache by row and write it by line."""

import math

import torch
from torch.nn import functional

from neuronx_distributed_inference.models.application_base import NeuronBaseForCausalLM
from neuronx_distributed_inference.models.config import InferenceConfig, NeuronConfig

REQUIRED = [
    "hidden_size",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "pad_token_id",
    "vocab_size",
    "max_position_embeddings",
    "rope_theta",
    "rms_norm_eps",
    "hidden_act",
]


class LlamaInferenceConfig(InferenceConfig):
    def get_required_attributes(self):
        return REQUIRED

    @classmethod
    def get_neuron_config_cls(cls):
        return NeuronConfig


class NeuronLlamaModel:
    """The weights and the KV cache. One line more than the batch takes what must not be kept."""

    def __init__(self, config, state):
        self.config = config
        self.state = state
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.num_heads
        neuron = config.neuron_config
        self.max_length = neuron.max_length
        shape = (
            config.num_hidden_layers,
            2,
            neuron.max_batch_size + 1,
            self.num_kv_heads,
            self.max_length,
            self.head_dim,
        )
        self.cache = torch.zeros(shape, dtype=neuron.torch_dtype)

    @torch.inference_mode()
    def run(self, wrapper, input_ids, attention_mask, position_ids, seq_ids, sampling_params, sampler):
        prefill = wrapper.is_context_encoding
        hidden = self.state["embed_tokens.weight"][input_ids.long()]
        rotation = self._rotation(position_ids)
        lines = seq_ids.long() if self.config.neuron_config.is_continuous_batching else torch.arange(len(seq_ids))
        for layer in range(self.config.num_hidden_layers):
            weights = f"layers.{layer}."
            normed = self._norm(hidden, weights + "input_layernorm.weight")
            hidden = hidden + self._attention(layer, normed, rotation, attention_mask, position_ids, lines, prefill)
            normed = self._norm(hidden, weights + "post_attention_layernorm.weight")
            gate = functional.silu(self._linear(normed, weights + "mlp.gate_proj"))
            hidden = hidden + self._linear(
                gate * self._linear(normed, weights + "mlp.up_proj"), weights + "mlp.down_proj"
            )
        column = wrapper.sampled_column(position_ids) if prefill else torch.zeros(len(hidden), dtype=torch.long)
        last = self._norm(hidden, "norm.weight")[torch.arange(len(hidden)), column]
        logits = functional.linear(last, self.state["lm_head.weight"]).float()
        return logits[:, None] if sampler is None else sampler(logits, sampling_params)

    def _attention(self, layer, hidden, rotation, mask, position_ids, lines, prefill):
        name = f"layers.{layer}.self_attn."
        query = self._rotate(self._heads(hidden, name + "q", self.num_heads), rotation)
        key = self._rotate(self._heads(hidden, name + "k", self.num_kv_heads), rotation)
        value = self._heads(hidden, name + "v", self.num_kv_heads)
        if prefill:
            columns = torch.arange(hidden.shape[1])
            visible = (columns[None, :] <= columns[:, None]) & mask[:, None].bool()
            visible = visible | torch.eye(len(columns), dtype=torch.bool)
            keys, values = key, value
        else:
            width, rows = mask.shape[1], len(lines)
            cached = self.cache[layer, :, :rows, :, :width]
            keys, values = torch.cat([cached[0], key], 2), torch.cat([cached[1], value], 2)
            visible = torch.cat([mask[:, None].bool(), torch.ones(rows, 1, 1, dtype=torch.bool)], 2)
        self._write(layer, key, value, position_ids, lines, prefill)
        groups = self.num_heads // self.num_kv_heads
        keys, values = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)
        scores = query @ keys.transpose(2, 3) / math.sqrt(self.head_dim)
        scores = scores.masked_fill(~visible[:, None], torch.finfo(scores.dtype).min)
        mixed = scores.softmax(-1) @ values
        return self._linear(mixed.transpose(1, 2).flatten(2), name + "o_proj")

    def _write(self, layer, key, value, position_ids, lines, prefill):
        for i, new in ((0, key), (1, value)):
            for row, line in enumerate(lines.tolist()):
                if prefill:
                    self.cache[layer, i, line, :, : new.shape[2]] = new[row]
                elif int(position_ids[row, 0]) < self.max_length:
                    self.cache[layer, i, line, :, int(position_ids[row, 0])] = new[row, :, 0]

    def _heads(self, hidden, name, count):
        heads = self._linear(hidden, name + "_proj").unflatten(-1, (count, self.head_dim)).transpose(1, 2)
        norm = name + "_norm.weight"
        return self._norm(heads, norm) if norm in self.state else heads

    def _linear(self, hidden, name):
        return functional.linear(hidden, self.state[name + ".weight"], self.state.get(name + ".bias"))

    def _norm(self, hidden, name):
        wide = hidden.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.config.rms_norm_eps)
        return wide.to(hidden.dtype) * self.state[name]

    def _rotation(self, position_ids):
        exponents = torch.arange(0, self.head_dim, 2).float() / self.head_dim
        angles = position_ids[:, None, :, None].float() / self.config.rope_theta**exponents
        return torch.cat([angles, angles], -1)

    def _rotate(self, heads, angles):
        first, second = heads.chunk(2, -1)
        turned = torch.cat([-second, first], -1)
        return (heads * angles.cos() + turned * angles.sin()).to(heads.dtype)


class NeuronLlamaForCausalLM(NeuronBaseForCausalLM):
    _model_cls = NeuronLlamaModel

    @classmethod
    def get_config_cls(cls):
        return LlamaInferenceConfig


class NeuronQwen2ForCausalLM(NeuronLlamaForCausalLM):
    """With biases, which the weights bring."""


class NeuronQwen3ForCausalLM(NeuronLlamaForCausalLM):
    """With norms of queries and keys, which the weights bring."""
