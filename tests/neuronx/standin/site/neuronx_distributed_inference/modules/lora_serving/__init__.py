"""LoRA serving: the configuration, the numbers of adapters, and the product that an adapter adds."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from neuronx_distributed_inference import at_least

_FIELDS = {
    "max_loras": 1,
    "max_lora_rank": 16,
    "target_modules": None,
    "lora_bias": "none",
    "lora_ckpt_paths": None,
    "lora_memory_transpose": True,
    "lora_shard_linear_layer": False,
}
_MANAGED = {
    "max_cpu_loras": 100,
    "batch_size": 1,
    "lora_ckpt_paths_cpu": None,
    "lora_ckpt_json": None,
    "is_context_encoding": False,
    "dynamic_multi_lora": False,
    "eviction_policy": "lru",
    "lfu_decay_period": 128,
    "base_model_quantized": False,
}


class LoraServingConfig:
    """Takes no keyword that its version does not have: a TypeError, unlike elsewhere in the library."""

    def __init__(self, **kwargs):
        fields = {**_FIELDS, **(_MANAGED if at_least(0, 7) else {"max_loras_on_cpu": 2})}
        if at_least(0, 9):
            fields["enable_base_model_only"] = False
        for name in kwargs:
            if name not in fields:
                raise TypeError(f"LoraServingConfig.__init__() got an unexpected keyword argument '{name}'")
        for name, default in fields.items():
            setattr(self, name, kwargs.get(name, default))
        self.lora_ckpt_paths = dict(self.lora_ckpt_paths or {})
        self.max_loras = max(self.max_loras, len(self.lora_ckpt_paths)) + self.has_base_slot * at_least(0, 9)
        self.all_paths = dict(self.lora_ckpt_paths)
        if at_least(0, 7) and self.dynamic_multi_lora:
            self.all_paths |= self.lora_ckpt_paths_cpu or {}
        for path in self.all_paths.values():
            if not Path(path).exists():
                raise FileNotFoundError(f"LoRA adapter path {path} is not found")
            self.max_lora_rank = max(self.max_lora_rank, read_adapter_config(path)["r"])

    @property
    def has_base_slot(self):
        return not at_least(0, 7) or (at_least(0, 9) and self.enable_base_model_only)

    @property
    def numbers(self):
        """Adapter name -> the number that `adapter_ids` mean."""
        return {name: i + self.has_base_slot for i, name in enumerate(self.all_paths)}


def read_adapter_config(path):
    return json.loads((Path(path) / "adapter_config.json").read_text())


class Adapters:
    """The matrices of all adapters, by number, and which of them each row of a forward takes.

    From 0.7 on context encoding copies a row's adapter beside its KV line, and token generation takes what lies
    beside line 0, 1, ... for its rows 0, 1, ..., whatever `adapter_ids` say.
    """

    def __init__(self, config):
        lora = config.neuron_config.lora_config
        self.lines = torch.zeros(config.neuron_config.max_batch_size + 1, dtype=torch.long)
        self.matrices = {}
        for name, path in lora.all_paths.items():
            scale = read_adapter_config(path)["lora_alpha"] / read_adapter_config(path)["r"]
            (file,) = Path(path).glob("*.safetensors")
            self.matrices[lora.numbers[name]] = (scale, load_file(file))
        self.most = max(lora.numbers.values(), default=0)
        self.has_base_slot = lora.has_base_slot
        self.rows = self.lines[:0]

    def choose(self, adapter_ids, lines, prefill):
        """For the forward that begins."""
        assert adapter_ids.shape == lines.shape
        if int(adapter_ids.min()) < 0 or int(adapter_ids.max()) > self.most:
            raise IndexError(f"adapter ids {adapter_ids.tolist()} are not from 0 to {self.most}")
        self.rows = adapter_ids.long()
        if at_least(0, 7):
            if prefill:
                self.lines[lines.long()] = self.rows
            else:
                self.rows = self.lines[: len(lines)]

    def added(self, hidden, name):
        """What the rows' adapters add to the output of a linear layer."""
        delta = [self._one(row, int(number), name) for row, number in zip(hidden, self.rows, strict=True)]
        return torch.stack(delta) if any(torch.is_tensor(each) for each in delta) else 0

    def _one(self, row, number, name):
        scale, matrices = self.matrices.get(number, (0, {}))
        prefix = f"base_model.model.model.{name}"
        first, second = (matrices.get(f"{prefix}.lora_{which}.weight") for which in "AB")
        if first is None:
            width = next(m for key, m in self._any(f"{prefix}.lora_B.weight"))
            return row.new_zeros(row.shape[0], width.shape[0])
        return scale * (row @ first.T.to(row.dtype) @ second.T.to(row.dtype))

    def _any(self, key):
        """Of whichever adapter has this module, to know the layer's width."""
        return ((key, matrices[key]) for _, matrices in self.matrices.values() if key in matrices)

    def touches(self, name):
        key = f"base_model.model.model.{name}.lora_B.weight"
        return any(key in matrices for _, matrices in self.matrices.values())
