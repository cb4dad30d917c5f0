"""LoRA serving: the configuration only."""

from neuronx_distributed_inference import at_least


class LoraServingConfig:
    def __init__(self, **kwargs):
        self.max_loras = kwargs.pop("max_loras", 1)
        self.max_lora_rank = kwargs.pop("max_lora_rank", 16)
        name, default = ("max_cpu_loras", 100) if at_least(0, 5) else ("max_loras_on_cpu", 2)
        setattr(self, name, kwargs.pop(name, default))
        self.lora_ckpt_paths = kwargs.pop("lora_ckpt_paths", None)
        self.batch_size = kwargs.pop("batch_size", 1)
