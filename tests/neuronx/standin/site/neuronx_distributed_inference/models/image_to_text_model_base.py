"""A decoder with a vision encoder: two Neuron configs, two directories, and embeddings that replace those of tokens."""

import copy
import os
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file

from neuronx_distributed_inference.models.application_base import NeuronBaseForCausalLM
from neuronx_distributed_inference.models.config import InferenceConfig
from neuronx_distributed_inference.models.model_wrapper import (
    CONTEXT_ENCODING_MODEL_TAG,
    TOKEN_GENERATION_MODEL_TAG,
    ModelWrapper,
)


class ImageToTextInferenceConfig(InferenceConfig):
    def __init__(
        self,
        text_neuron_config,
        vision_neuron_config,
        fused_spec_config=None,
        load_config=None,
        metadata=None,
        **kwargs,
    ):
        super().__init__(copy.deepcopy(text_neuron_config), fused_spec_config, load_config, metadata, **kwargs)
        text, vision = (_entries(getattr(self, name)) for name in ("text_config", "vision_config"))
        self.text_config = InferenceConfig(text_neuron_config, **text)
        self.text_config._name_or_path = self._name_or_path
        self.vision_config = InferenceConfig(vision_neuron_config, **vision)

    def validate_config(self):
        def found(name):
            section, _, entry = name.partition(".")
            return entry in _entries(getattr(self, section, {}))

        missing = [name for name in self.get_required_attributes() if not found(name)]
        assert not missing, f"Config must define {missing}"

    @classmethod
    def load(cls, directory):
        raise NotImplementedError("the adapter opens an artifact with its own configuration")


def _entries(section):
    return vars(section) if isinstance(section, SimpleNamespace) else dict(section)


class ImageToTextModelWrapper(ModelWrapper):
    """Vision embeddings and their positions go in behind the other arguments, of the padded prompt's length."""

    def _pad_sequences(self, *args):
        *args, embeddings, positions = super()._pad_sequences(*args)
        length = args[0].shape[1]
        if self.is_context_encoding and positions.dim() == 3 and positions.shape[1] != length:
            embeddings, positions = self.dummy_vision_inputs(args[0], length)
        return *args, embeddings, positions

    def dummy_vision_inputs(self, input_ids, length):
        if input_ids.shape[-1] == 1:
            return torch.zeros(0), torch.zeros(0, dtype=torch.bool)
        rows, hidden = input_ids.shape[0], self.config.hidden_size
        zeros = torch.zeros(rows, length, hidden, dtype=self.neuron_config.torch_dtype)
        return zeros, torch.full((rows, length, 1), length - 1, dtype=torch.int32)

    def _forward_with_pad(self, args):
        self.vision = args[6:]
        return super()._forward_with_pad(args[:6])

    def _execute(self, input_ids, attention_mask, position_ids, seq_ids, sampling_params, adapter_ids, *vision):
        self.executed.append(
            {"tag": self.tag, "bucket": attention_mask.shape[1], "input_ids": input_ids, "seq_ids": seq_ids}
        )
        args = (input_ids, attention_mask, position_ids, seq_ids, sampling_params, adapter_ids)
        return self.graph(self, *args, vision=vision or self.vision)


class NeuronBaseForImageToText(NeuronBaseForCausalLM):
    vision_tag = "vision_encoder_model"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.text_config, self.vision_config = self.config.text_config, self.config.vision_config
        tags = (CONTEXT_ENCODING_MODEL_TAG, TOKEN_GENERATION_MODEL_TAG)
        self.models = [ImageToTextModelWrapper(self.text_config, tag) for tag in tags]
        self.context_encoding_model, self.token_generation_model = self.models
        for name in ("is_prefix_caching", "enable_fused_speculation", "chunked_prefill_config", "is_medusa"):
            if getattr(self.neuron_config, name):
                raise ValueError(f"NeuronBaseForImageToText does not yet support {name}")

    def compile(self, compiled_model_path, debug=False, pre_shard_weights_hook=None, dry_run=False):
        directory = Path(compiled_model_path)
        self.config.save(directory)
        work = Path(os.environ.get("BASE_COMPILE_WORK_DIR", "/tmp/nxd_model/"))
        states = self._states(self.model_path)
        shapes = {
            "text_model": {model.tag: model.neuron_config.buckets for model in self.models},
            "vision_model": {self.vision_tag: self.vision_config.neuron_config.buckets},
        }
        for part, config in (("text_model", self.text_config), ("vision_model", self.vision_config)):
            self._trace(work / part, shapes[part])
            (directory / part).mkdir()
            torch.save({"shapes": shapes[part]}, directory / part / "model.pt")
            if config.neuron_config.save_sharded_checkpoint:
                self._save_shards(directory / part / "weights", states[part], config.neuron_config)

    def load(self, compiled_model_path, start_rank_id=None, local_ranks_size=None, skip_warmup=False):
        directory = Path(compiled_model_path)
        for part in ("text_model", "vision_model"):
            try:
                torch.load(directory / part / "model.pt")
            except Exception as error:
                raise RuntimeError(f"PytorchStreamReader failed reading zip archive: {error}") from None
        self._take_cores()
        ranks = self.neuron_config.local_ranks_size
        states = self._states(self.config._name_or_path) if not self.neuron_config.save_sharded_checkpoint else {}
        for part, config in (("text_model", self.text_config), ("vision_model", self.vision_config)):
            if part not in states:
                files = [directory / part / f"weights/tp{rank}_sharded_checkpoint.safetensors" for rank in range(ranks)]
                shards = [load_file(file) for file in files][: config.neuron_config.tp_degree]
                states[part] = {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}
        self._open(states["text_model"], states["vision_model"])
        self.is_loaded_to_neuron = True

    def _states(self, path):
        """Weights of the decoder and of the vision encoder, under NxD's names."""
        text, vision = {}, {}
        for name, value in self.get_state_dict(path).items():
            if name.startswith(("vision_model.", "multi_modal_projector.")):
                vision[name] = value.to(self.vision_config.neuron_config.torch_dtype)
            else:
                text[name.removeprefix("language_model.").removeprefix("model.")] = value
        return {"text_model": text, "vision_model": vision}
