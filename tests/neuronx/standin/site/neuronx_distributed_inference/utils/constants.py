"""The registry, by version."""

from neuronx_distributed_inference import at_least
from neuronx_distributed_inference.models.llama import modeling_llama as llama
from neuronx_distributed_inference.models.llama4 import modeling_llama4 as llama4
from neuronx_distributed_inference.models.unrunnable import unrunnable

MODEL_TYPES = {
    "llama": {"causal-lm": llama.NeuronLlamaForCausalLM},
    "mllama": {"causal-lm": unrunnable("Mllama")},
    "mixtral": {"causal-lm": unrunnable("Mixtral", moe=True)},
    "dbrx": {"causal-lm": unrunnable("Dbrx", moe=True)},
}
if at_least(0, 5):
    MODEL_TYPES |= {
        "llama4": {"causal-lm": llama4.NeuronLlama4ForCausalLM, "image-encoding": unrunnable("Llama4Vision")},
        "qwen2": {"causal-lm": llama.NeuronQwen2ForCausalLM},
        "qwen3": {"causal-lm": llama.NeuronQwen3ForCausalLM},
    }
if at_least(0, 6):
    MODEL_TYPES["qwen3_moe"] = {"causal-lm": unrunnable("Qwen3Moe", moe=True)}
if at_least(0, 7):
    MODEL_TYPES["gpt_oss"] = {"causal-lm": unrunnable("GptOss", moe=True)}
if at_least(0, 8):
    MODEL_TYPES |= {name: {"causal-lm": unrunnable(name)} for name in ("pixtral", "qwen2_vl", "qwen3_vl")}
if at_least(0, 9):
    MODEL_TYPES["gemma3"] = {"causal-lm": unrunnable("Gemma3")}
