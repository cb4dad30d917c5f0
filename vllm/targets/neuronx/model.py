"""`NeuronxDeviceModel`: a model on NeuronCores, driven through NxD Inference.

An artifact directory holds what the library writes: `neuron_config.json`, `model.pt` (the compiled programs) and,
unless `save_sharded_checkpoint` is false, `weights/tp<rank>_sharded_checkpoint.safetensors`; of an image-to-text model
the decoder and the vision encoder have programs and weights each, in `text_model/` and `vision_model/`. It is made for
one configuration, and the application is opened with the configuration of this start: the two are compared before.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vllm import envs
from vllm.artifacts.manifest import ArtifactError, DamagedArtifact, read_json
from vllm.config import VllmConfig
from vllm.core.contract import Capabilities
from vllm.device.model import DeviceLost, DeviceModel, Progress
from vllm.device.model_input import ModelInput, ModelOutput
from vllm.logger import init_logger
from vllm.sample.table import LOGITS_NEEDED
from vllm.settings.host_platform import library_setting_the_platform, platform_name
from vllm.settings.parallel import HeadSharding
from vllm.settings.programs import programs_of
from vllm.settings.vision_shapes import is_image_to_text
from vllm.sizes import DTYPE_BYTES
from vllm.targets.neuronx import adapters, environment, inputs, outputs, vision
from vllm.targets.neuronx.chunks import chunk_tokens
from vllm.targets.neuronx.compiling import compile_into
from vllm.targets.neuronx.config import build_inference_config, is_portable, neuron_entries
from vllm.targets.neuronx.input_checks import Limits, row_faults
from vllm.targets.neuronx.library import load_library
from vllm.targets.neuronx.profile import TARGET
from vllm.targets.neuronx.registry import application_class
from vllm.targets.neuronx.speculation import cache_length
from vllm.targets.neuronx.versions import PACKAGE, installed, parse_version

logger = init_logger(__name__)

_LOST = ("NRT_EXEC_HW_ERR", "NRT_HW_ERROR", "NRT_UNINITIALIZED", "NRT_CLOSED", "NRT_TIMEOUT", "NERR_HW")
"""What the runtime says when a device, and not an input, is at fault."""

_MOST_FAILURES = 3
"""Calls in a row that may fail: inputs are checked before, so that many speak of the device."""


class NeuronxDeviceModel(DeviceModel):
    """A loaded application of the library."""

    def __init__(self, config: VllmConfig, application: Any, directory: Path) -> None:
        self.application: Any = application
        self.config = config
        self.directory = directory
        self.limits = _limits(config)
        self.capabilities = capabilities(config)
        self._failures = 0

    @classmethod
    def artifact_key(cls, config: VllmConfig) -> dict[str, Any]:
        packages = (PACKAGE, "neuronx-distributed", "neuronx-cc", "torch-neuronx")
        return {
            "compiler": {name: installed(name) for name in packages},
            "portable": is_portable(config),
            "platform": platform_name(),
            "compiler_flags": envs.NEURON_CC_FLAGS,
        }

    @classmethod
    def compile(cls, config: VllmConfig, directory: Path, progress: Progress) -> None:
        environment.prepare(config)
        if not platform_name():
            logger.warning(
                "this is no Neuron instance: what is compiled here is found on one only if both have the same "
                "NEURON_PLATFORM_TARGET_OVERRIDE"
            )

        def compile_model(target: Path) -> None:
            _application(config).compile(str(target))

        num_shards = config.neuron_config.local_ranks_size if is_portable(config) else 0
        parts = vision.PARTS if is_image_to_text(config.model_config.hf_config) else ("",)
        num_programs = len(programs_of(config.neuron_config, config.model_config.hf_config))
        compile_into(directory, compile_model, num_shards, progress, num_programs, parts)

    @classmethod
    def load(cls, config: VllmConfig, directory: Path) -> NeuronxDeviceModel:
        environment.prepare(config)
        application = _application(config)
        _compare(config, directory)
        try:
            application.load(str(directory))
        except Exception as error:
            raise ArtifactError(f"{directory} cannot be loaded: {environment.explain_load_failure(error)}") from error
        return cls(config, application, directory)

    def forward(self, model_input: ModelInput) -> ModelOutput:
        num_rows = model_input.num_rows
        if self.limits.speculation_length:
            return self._speculate(model_input)
        if self.limits.global_topk:
            result = ModelOutput(tokens=np.zeros((num_rows, 1), np.int32), num_new=model_input.samples.astype(np.int32))
        else:
            result = ModelOutput(logits=np.zeros((num_rows, self.limits.vocab_size), np.float32))
        for call in inputs.build_calls(model_input, self.limits):
            output = self._run(call)
            if result.tokens is not None:
                result.tokens[call.rows, 0] = outputs.sampled_tokens(output, len(call.rows))
            elif result.logits is not None:
                result.logits[call.rows] = outputs.last_logits(
                    output, len(call.rows), self.limits.vocab_size, chunked=bool(self.limits.chunk)
                )
        return result

    def _speculate(self, model_input: ModelInput) -> ModelOutput:
        """Fused speculation. A prompt brings its first token, a decode as many as were accepted and can be used."""
        num_rows, width = model_input.num_rows, self.limits.speculation_length
        result = ModelOutput(tokens=np.zeros((num_rows, width), np.int32), num_new=np.zeros(num_rows, np.int32))
        last = model_input.full_context_lens - 1
        for call in inputs.build_calls(model_input, self.limits):
            most = 1 + model_input.num_drafts[call.rows]
            tokens, num_new = outputs.accepted_tokens(self._run(call), last[call.rows], most)
            result.tokens[call.rows], result.num_new[call.rows] = tokens, num_new  # type: ignore[index]
        result.num_drafted = model_input.num_drafts
        return result

    def row_faults(self, model_input: ModelInput) -> dict[int, str]:
        return row_faults(model_input, self.limits)

    def memory(self) -> dict[str, int]:
        weights = sum(file.stat().st_size for file in self.directory.rglob("weights/*.safetensors"))
        return {"weights": weights, "kv_cache": kv_cache_bytes(self.config)}

    def shutdown(self) -> None:
        """The runtime releases its cores with the last reference to the programs."""
        self.application = None
        gc.collect()

    def _run(self, call: inputs.Call) -> Any:
        import torch

        arguments = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in call.arguments.items()}
        if self.application is None:
            raise DeviceLost("the model was shut down")
        try:
            output = self.application.forward(**arguments)
        except RuntimeError as error:
            self._failures += 1
            if any(sign in str(error) for sign in _LOST):
                raise DeviceLost(f"the NeuronCores failed: {error}") from error
            if self._failures >= _MOST_FAILURES:
                raise DeviceLost(f"{self._failures} calls in a row failed, the last with: {error}") from error
            raise
        self._failures = 0
        return output


def capabilities(config: VllmConfig) -> Capabilities:
    """With on-device sampling temperature, top_k and top_p; with host sampling all but logits of the prompt."""
    vocab_size, global_topk = config.model_config.vocab_size, config.neuron_config.global_topk
    on_device = config.neuron_config.on_device_sampling
    slot = adapters.base_slot(config.neuron_config.lora_config, parse_version(installed()))
    return Capabilities(
        target=TARGET.profile.name,
        sampling=frozenset() if on_device else LOGITS_NEEDED - {"prompt_logprobs"},
        max_top_k=min(global_topk, vocab_size) if on_device else vocab_size,
        default_top_k=min(global_topk, vocab_size) if on_device else 0,
        max_logprobs=0 if on_device else vocab_size,
        structured_outputs=not on_device,
        lora=slot is not None,
        mixed_steps=config.neuron_config.is_chunked_prefill,
        greedy_only=config.neuron_config.enable_fused_speculation,
        needs_adapter=slot == -1,
        deterministic=False,
        images=vision.image_limits(config),
    )


def kv_cache_bytes(config: VllmConfig) -> int:
    """Bytes of the KV cache over all cores, copies of KV heads included."""
    neuron, hf_config = config.neuron_config, config.model_config.hf_config
    heads = HeadSharding.from_hf_config(neuron.tp_degree, hf_config)
    if heads is None:
        return 0
    lines = neuron.kv_cache_batch_size + neuron.kv_cache_padding_size
    tokens = (
        (neuron.pa_num_blocks + 1) * neuron.pa_block_size if neuron.is_block_kv_layout else lines * cache_length(neuron)
    )
    values = 2 * int(hf_config.get("num_hidden_layers", 0)) * heads.sharded_kv_heads * heads.head_dim
    return int(values * tokens * DTYPE_BYTES[neuron.torch_dtype])


def _application(config: VllmConfig) -> Any:
    library = load_library()
    application = application_class(config.model_config.hf_config, library.model_types)
    with library_setting_the_platform():
        built = build_inference_config(config, library, application)
    return application(config.model_config.model_path or config.model_config.model, built)


def _limits(config: VllmConfig) -> Limits:
    neuron = config.neuron_config
    return Limits(
        num_lines=neuron.tkg_batch_size,
        max_length=neuron.max_length,
        max_context_length=neuron.max_context_length,
        vocab_size=config.model_config.vocab_size,
        global_topk=neuron.global_topk,
        masks_absent_lines=neuron.apply_seq_ids_mask,
        adapter_slot=adapters.base_slot(neuron.lora_config, parse_version(installed())),
        block_size=neuron.pa_block_size if neuron.is_block_kv_layout else 0,
        num_blocks=neuron.pa_num_blocks,
        chunk=chunk_tokens(config),
        speculation_length=neuron.speculation_length if neuron.enable_fused_speculation else 0,
        images=vision.image_limits(config),
    )


def _compare(config: VllmConfig, directory: Path) -> None:
    """Hold the artifact's own configuration against this start's.

    Raises ArtifactError that lists the differences, and DamagedArtifact where it cannot be read.
    """
    version = load_library().version
    entries = neuron_entries(config, version)
    try:
        saved = read_json(directory / "neuron_config.json")
        differences = list(_differences(saved["neuron_config"], entries, ""))
        if is_image_to_text(config.model_config.hf_config):
            of_vision = vision.vision_entries(config, entries, version)
            differences += _differences(saved["vision_config"]["neuron_config"], of_vision, "vision_neuron_config.")
    except (DamagedArtifact, KeyError, TypeError, AttributeError) as error:
        raise DamagedArtifact(f"{directory} holds no readable neuron_config.json: {error}") from None
    if differences:
        raise ArtifactError(f"{directory} was compiled for another configuration: {'; '.join(differences)}")


def _differences(saved: Mapping[str, Any], entries: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name, value in entries.items():
        if isinstance(value, (bool, int, list)) and saved.get(name) != value:
            yield f"{prefix}{name}: {saved.get(name)!r} in the artifact, {value!r} needed"
    sampling = "on_device_sampling_config"
    if (entries.get(sampling) is None) != (saved.get(sampling) is None):
        yield f"{prefix}{sampling}: only one of the artifact and this configuration has it"
