"""Llama and its near relatives: static graphs that read the KV cache by row and write it by line."""

import math

import torch
from torch.nn import functional

from neuronx_distributed_inference import at_least
from neuronx_distributed_inference.models.application_base import NeuronBaseForCausalLM
from neuronx_distributed_inference.models.config import InferenceConfig, NeuronConfig
from neuronx_distributed_inference.modules.lora_serving import Adapters

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
    """The weights and the KV cache. One line, or block, more than there are takes what must not be kept."""

    def __init__(self, config, state):
        self.config = config
        self.state = state
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.num_heads
        neuron = config.neuron_config
        self.max_length = neuron.max_length
        self.every_column = False
        self.adapters = Adapters(config) if neuron.lora_config else None
        places = (neuron.max_batch_size + 1, self.num_kv_heads, self.max_length, self.head_dim)
        if neuron.is_block_kv_layout:
            sink = 0 if neuron.chunked_prefill_config else 1
            places = (neuron.pa_num_blocks + sink, neuron.pa_block_size, self.num_kv_heads, self.head_dim)
        self.cache = torch.zeros((config.num_hidden_layers, 2, *places), dtype=neuron.torch_dtype)

    @torch.inference_mode()
    def run_blocks(self, wrapper, input_ids, position_ids, slots, sampling_params, sampler, **context):
        """Block KV: keys and values of what is computed are gathered, the new ones written by slot."""
        if "read" in context:
            return self._run_chunk(wrapper, input_ids, position_ids, slots, sampling_params, sampler, **context)
        table, mask = context["table"], context["mask"]
        size = self.config.neuron_config.pa_block_size
        read = (table[:, :, None] * size + torch.arange(size)).flatten(1).long()
        sink = self.config.neuron_config.pa_num_blocks * size
        written = torch.where(slots < 0, sink, slots).long()
        active = torch.ones(input_ids.shape[1], input_ids.shape[1], dtype=torch.bool).tril()
        visible = [mask[:, None].bool().expand(-1, input_ids.shape[1], -1), active.expand(len(mask), -1, -1)]
        places = {"read": read, "written": written, "visible": torch.cat(visible, 2)}
        prefill = wrapper.is_context_encoding
        return self._run(wrapper, input_ids, position_ids, sampling_params, sampler, prefill, places)

    def _run_chunk(self, wrapper, input_ids, position_ids, slots, params, sampler, read, visible, columns):
        """Chunked prefill. There is no sink: slot -1 is the last one of the last block."""
        last_slot = self.cache.shape[2] * self.cache.shape[3] - 1
        written = torch.where(slots < 0, last_slot, slots).long()
        places = {"read": read, "written": written, "visible": visible}
        if columns is None:
            return self._run(wrapper, input_ids, position_ids, params, sampler, False, places)
        return self._run(wrapper, input_ids, position_ids, params, sampler, columns, places)

    @torch.inference_mode()
    def run(
        self,
        wrapper,
        input_ids,
        attention_mask,
        position_ids,
        seq_ids,
        sampling_params,
        adapter_ids,
        sampler,
        every_column=False,
    ):
        lines = seq_ids.long() if self.config.neuron_config.is_continuous_batching else torch.arange(len(seq_ids))
        self.every_column = every_column
        places = {"mask": attention_mask, "positions": position_ids, "lines": lines}
        prefill = wrapper.is_context_encoding
        if self.adapters is not None:
            self.adapters.choose(adapter_ids, lines, prefill)
        return self._run(wrapper, input_ids, position_ids, sampling_params, sampler, prefill, places)

    def _run(self, wrapper, input_ids, position_ids, sampling_params, sampler, prefill, places):
        hidden = self._embed(input_ids)
        rotation = self._rotation(position_ids)
        for layer in range(self.config.num_hidden_layers):
            weights = f"layers.{layer}."
            normed = self._norm(hidden, weights + "input_layernorm.weight")
            hidden = hidden + self._attention(layer, normed, rotation, prefill, places)
            normed = self._norm(hidden, weights + "post_attention_layernorm.weight")
            hidden = hidden + self._mlp(normed, layer)
        normed = self._norm(hidden, "norm.weight")
        if self.every_column:
            return functional.linear(normed, self.state["lm_head.weight"]).float()
        if torch.is_tensor(prefill):
            last = normed[0, prefill]
        else:
            column = wrapper.sampled_column(position_ids) if prefill else torch.zeros(len(hidden), dtype=torch.long)
            last = normed[torch.arange(len(hidden)), column]
        logits = functional.linear(last, self.state["lm_head.weight"]).float()
        return logits[:, None] if sampler is None else sampler(logits, sampling_params)

    def _embed(self, input_ids):
        return self.state["embed_tokens.weight"][input_ids.long()]

    def _mlp(self, hidden, layer):
        return self._gated(hidden, f"layers.{layer}.mlp")

    def _gated(self, hidden, name):
        gate = functional.silu(self._linear(hidden, f"{name}.gate_proj"))
        return self._linear(gate * self._linear(hidden, f"{name}.up_proj"), f"{name}.down_proj")

    def _attention(self, layer, hidden, rotation, prefill, places):
        name = f"layers.{layer}.self_attn."
        query = self._rotate(self._heads(hidden, name + "q", self.num_heads), rotation)
        key = self._rotate(self._heads(hidden, name + "k", self.num_kv_heads), rotation)
        value = self._heads(hidden, name + "v", self.num_kv_heads)
        if "read" in places:
            keys, values, visible = self._through_blocks(layer, key, value, **places)
        else:
            keys, values, visible = self._through_lines(layer, key, value, prefill, **places)
        groups = self.num_heads // self.num_kv_heads
        keys, values = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)
        scores = query @ keys.transpose(2, 3) / math.sqrt(self.head_dim)
        scores = scores.masked_fill(~visible[:, None], torch.finfo(scores.dtype).min)
        mixed = scores.softmax(-1) @ values
        return self._linear(mixed.transpose(1, 2).flatten(2), name + "o_proj")

    def _through_blocks(self, layer, key, value, read, written, visible):
        found = []
        for i, new in ((0, key), (1, value)):
            slots = self.cache[layer, i].flatten(0, 1)
            found.append(torch.cat([slots[read].transpose(1, 2), new], 2))
            slots[written] = new.transpose(1, 2)
        return *found, visible

    def _through_lines(self, layer, key, value, prefill, mask, positions, lines):
        if prefill:
            columns = torch.arange(key.shape[2])
            visible = (columns[None, :] <= columns[:, None]) & mask[:, None].bool()
            visible = visible | torch.eye(len(columns), dtype=torch.bool)
            keys, values = key, value
        else:
            rows, columns = len(lines), key.shape[2]
            cached = self.cache[layer, :, :rows, :, : mask.shape[1]]
            keys, values = torch.cat([cached[0], key], 2), torch.cat([cached[1], value], 2)
            among = torch.ones(columns, columns, dtype=torch.bool).tril().expand(rows, -1, -1)
            visible = torch.cat([mask[:, None].bool().expand(-1, columns, -1), among], 2)
        self._write(layer, key, value, positions, lines, prefill)
        return keys, values, visible

    def _write(self, layer, key, value, position_ids, lines, prefill):
        for i, new in ((0, key), (1, value)):
            for row, line in enumerate(lines.tolist()):
                if prefill:
                    self.cache[layer, i, line, :, : new.shape[2]] = new[row]
                    continue
                for column, position in enumerate(position_ids[row].tolist()):
                    if position < self.max_length:
                        self.cache[layer, i, line, :, position] = new[row, :, column]

    def _heads(self, hidden, name, count):
        heads = self._linear(hidden, name + "_proj").unflatten(-1, (count, self.head_dim)).transpose(1, 2)
        norm = name + "_norm.weight"
        return self._norm(heads, norm) if norm in self.state else heads

    def _linear(self, hidden, name):
        out = functional.linear(hidden, self.state[name + ".weight"], self.state.get(name + ".bias"))
        if self.adapters is not None and self.adapters.touches(name):
            out = out + self.adapters.added(hidden, name)
        return out

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
    _keeps_a_window = at_least(0, 7)

    @classmethod
    def get_config_cls(cls):
        return LlamaInferenceConfig


class NeuronQwen2ForCausalLM(NeuronLlamaForCausalLM):
    """With biases, which the weights bring."""

    _keeps_a_window = False


class NeuronQwen3ForCausalLM(NeuronLlamaForCausalLM):
    """With norms of queries and keys, which the weights bring."""

    _keeps_a_window = False
