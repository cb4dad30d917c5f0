"""Llama 4: experts in every layer, layers without rotation, and images."""

import torch
from torch.nn import functional
from transformers.models.llama4.configuration_llama4 import Llama4VisionConfig
from transformers.models.llama4.modeling_llama4 import Llama4VisionModel

from neuronx_distributed_inference.models.config import MoENeuronConfig
from neuronx_distributed_inference.models.image_to_text_model_base import (
    ImageToTextInferenceConfig,
    NeuronBaseForImageToText,
)
from neuronx_distributed_inference.models.llama.modeling_llama import REQUIRED, NeuronLlamaModel
from neuronx_distributed_inference.modules.generation.sampling import Sampler

VISION_MAX_NUM_CHUNKS = 88
OF_VISION = (
    "image_size",
    "patch_size",
    "num_hidden_layers",
    "num_channels",
    "hidden_size",
    "num_attention_heads",
    "rope_theta",
    "vision_output_dim",
)


class Llama4NeuronConfig(MoENeuronConfig):
    pass


class Llama4InferenceConfig(ImageToTextInferenceConfig):
    def get_required_attributes(self):
        of_text = [*REQUIRED, "num_local_experts", "num_experts_per_tok"]
        return [f"text_config.{name}" for name in of_text] + [f"vision_config.{name}" for name in OF_VISION]

    @classmethod
    def get_neuron_config_cls(cls):
        return Llama4NeuronConfig


class NeuronLlama4TextModel(NeuronLlamaModel):
    """Rotation turns neighbouring values, not halves; `use_qk_norm` normalises what was turned."""

    def run(self, *args, vision, **kwargs):
        self.vision = vision
        return super().run(*args, **kwargs)

    def _embed(self, input_ids):
        """Embeddings at the positions given, later ones over earlier ones: padding, too, has a position."""
        hidden = super()._embed(input_ids)
        embeddings, positions = self.vision
        if not positions.numel():
            return hidden
        flat = positions.view(-1).long()
        for position, embedding in zip(flat.tolist(), embeddings.reshape(-1, hidden.shape[-1]), strict=True):
            hidden[0, position] = embedding
        return hidden

    def _attention(self, layer, hidden, rotation, prefill, places):
        turned = rotation if self.config.no_rope_layers[layer] else None
        return super()._attention(layer, hidden, turned, prefill, places)

    def _rotate(self, heads, angles):
        if angles is None:
            return heads
        angles = angles[..., : self.head_dim // 2]
        even, odd = heads[..., ::2].float(), heads[..., 1::2].float()
        cos, sin = angles.cos(), angles.sin()
        turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)
        if self.config.use_qk_norm:
            turned = turned * torch.rsqrt(turned.pow(2).mean(-1, keepdim=True) + self.config.rms_norm_eps)
        return turned.to(heads.dtype)

    def _mlp(self, hidden, layer):
        name = f"layers.{layer}.feed_forward"
        scores = functional.linear(hidden, self.state[f"{name}.router.weight"])
        best, chosen = scores.topk(self.config.num_experts_per_tok, -1)
        weights = torch.zeros_like(scores).scatter_(-1, chosen, best.float().sigmoid().to(scores.dtype))
        out = self._gated(hidden, f"{name}.shared_expert")
        for expert in range(self.config.num_local_experts):
            routed = hidden * weights[..., expert : expert + 1]
            gate, up = (routed @ self.state[f"{name}.experts.gate_up_proj"][expert]).chunk(2, -1)
            out = out + (up * functional.silu(gate)) @ self.state[f"{name}.experts.down_proj"][expert]
        return out


class NeuronLlama4VisionEmbeddings:
    """Tiles to embeddings of the decoder. Tiles of zeros that fill a bucket give embeddings, too."""

    def __init__(self, config, state):
        given = {name: value for name, value in vars(config).items() if hasattr(Llama4VisionConfig(), name)}
        given.pop("neuron_config", None)
        self.buckets = config.neuron_config.buckets
        self.encoder = Llama4VisionModel(Llama4VisionConfig(**given)).eval()
        for parameter in self.encoder.parameters():
            parameter.data = parameter.data.to(config.neuron_config.torch_dtype)
        prefix = "vision_model."
        of_encoder = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        self.encoder.load_state_dict(of_encoder)
        self.projection = state["multi_modal_projector.linear_1.weight"]

    @torch.inference_mode()
    def __call__(self, pixel_values):
        tiles = pixel_values.shape[0]
        bucket = next((bucket for bucket in self.buckets if tiles <= bucket), None)
        if bucket is None:
            raise ValueError(f"num image chunks: {tiles} is larger than the largest bucket: {self.buckets[-1]}")
        padding = torch.zeros(bucket - tiles, *pixel_values.shape[1:], dtype=pixel_values.dtype)
        hidden = self.encoder(torch.cat([pixel_values, padding])).last_hidden_state
        return functional.linear(hidden, self.projection)


class NeuronLlama4ForCausalLM(NeuronBaseForImageToText):
    _model_cls = NeuronLlama4TextModel

    @classmethod
    def get_config_cls(cls):
        return Llama4InferenceConfig

    @classmethod
    def get_neuron_config_cls(cls):
        return Llama4NeuronConfig

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        vision = self.vision_config.neuron_config
        if not vision.enable_bucketing:
            vision.buckets = [VISION_MAX_NUM_CHUNKS]
        sharers = vision.world_size // vision.tp_degree
        assert vision.world_size % vision.tp_degree == 0 and not any(count % sharers for count in vision.buckets)

    def _open(self, text, vision):
        network = NeuronLlama4TextModel(self.text_config, text)
        sampler = Sampler(self.text_config) if self.neuron_config.on_device_sampling_config else None
        self.vision_encoder_model = NeuronLlama4VisionEmbeddings(self.vision_config, vision)
        for model in self.models:
            model.graph = lambda wrapper, *args, vision: network.run(wrapper, *args, sampler, vision=vision)

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        seq_ids=None,
        sampling_params=None,
        pixel_values=None,
        vision_mask=None,
        adapter_ids=None,
        past_key_values=None,
        use_cache=None,
        medusa_args=None,
        input_capture_hook=None,
        return_dict=None,
    ):
        vision = self._vision_inputs(input_ids, position_ids, pixel_values, vision_mask)
        rows = torch.zeros(input_ids.shape[0], dtype=torch.int32)
        args = (input_ids, seq_ids, attention_mask, position_ids, sampling_params, rows)
        return self._forward(*args, blocks=(None, None, None, None), vision=vision)

    def _vision_inputs(self, input_ids, position_ids, pixel_values, vision_mask):
        limit = self._padding_length(position_ids)
        has_image = pixel_values is not None and vision_mask is not None and pixel_values.sum() != 0
        if not has_image or input_ids.shape[-1] == 1:
            return self.context_encoding_model.dummy_vision_inputs(input_ids, limit)
        assert vision_mask.dtype == torch.bool, "vision_mask must be of type bool"
        positions = torch.nonzero(vision_mask.squeeze()).squeeze()
        if len(positions) > limit:
            raise RuntimeError("Text model sequence length is not enough to handle all vision embeddings")
        positions = functional.pad(positions, (0, limit - len(positions)), value=limit - 1)[None, :, None]
        encoded = self.vision_encoder_model(pixel_values.to(self.vision_config.neuron_config.torch_dtype))
        encoded = encoded.to(self.text_config.neuron_config.torch_dtype).flatten(0, 1)[None, :limit]
        return functional.pad(encoded, (0, 0, 0, limit - encoded.shape[1])), positions

    def _padding_length(self, position_ids):
        neuron = self.config.neuron_config
        is_prefill = int(position_ids.min()) == 0
        buckets = neuron.context_encoding_buckets if is_prefill else neuron.token_generation_buckets
        longest = int(position_ids.max())
        fitting = [bucket for bucket in buckets or neuron.buckets if bucket > longest]
        if not fitting:
            raise ValueError("No bucket found for provided input_ids!")
        return fitting[0]
