"""Architectures that the stand-in lists but has no arithmetic for."""

from neuronx_distributed_inference.models.application_base import NeuronBaseForCausalLM
from neuronx_distributed_inference.models.config import InferenceConfig, MoENeuronConfig, NeuronConfig


def unrunnable(name, moe=False):
    neuron_config_cls = MoENeuronConfig if moe else NeuronConfig

    class Config(InferenceConfig):
        @classmethod
        def get_neuron_config_cls(cls):
            return neuron_config_cls

    class Application(NeuronBaseForCausalLM):
        @classmethod
        def get_config_cls(cls):
            return Config

        @classmethod
        def get_neuron_config_cls(cls):
            return neuron_config_cls

    Application.__name__ = f"Neuron{name}ForCausalLM"
    return Application
