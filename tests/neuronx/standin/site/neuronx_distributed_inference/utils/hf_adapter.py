"""From a Hugging Face config to the hook that `InferenceConfig` runs."""

from types import SimpleNamespace

from transformers import AutoConfig, PretrainedConfig


def load_pretrained_config(model_path_or_name=None, hf_config=None):
    if (model_path_or_name is None) == (hf_config is None):
        raise ValueError("Please provide only one of model_path_or_name or hf_config")

    def load_config(self):
        config = hf_config if hf_config is not None else AutoConfig.from_pretrained(model_path_or_name)
        entries = config.to_dict()
        dtype = entries.pop("torch_dtype", None) or entries.pop("dtype", None)
        if dtype is not None and not self.neuron_config.overrides_torch_dtype:
            self.neuron_config.torch_dtype = dtype
        for name, value in entries.items():
            if isinstance(getattr(config, name, None), PretrainedConfig):
                entries[name] = SimpleNamespace(**value)
        self.__dict__.update(entries)

    return load_config
