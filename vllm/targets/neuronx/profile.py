"""What the `neuronx` target can do, before a model is loaded; and plans for it, which need no library."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from vllm.config import VllmConfig
from vllm.core.profile import KeyRule, TargetProfile
from vllm.settings import host_platform
from vllm.settings.faults import Faults
from vllm.settings.neuron_config import NeuronConfig
from vllm.settings.target import PlannedFile, Support, Target, Version
from vllm.targets.neuronx import adapters, checks, registry
from vllm.targets.neuronx.config import is_portable
from vllm.targets.neuronx.library import ROOT
from vllm.targets.neuronx.versions import NEWEST, OLDEST, PACKAGE, SDK, parse_version

_LAST_WITH_KERNELS_ON = {"inf2": Version(0, 8), "trn1": Version(0, 8)}
_NO_KV_QUANT = "a quantised KV cache is not served on this target yet"


class NeuronxTarget(Target):
    profile = TargetProfile(
        name="neuronx",
        dtypes=("bfloat16", "float16", "float32", "float8_e4m3fn", "float8_e5m2"),
        kv_dtypes=("auto", "bfloat16", "float32"),
        offload_refusal="the library gives no way to copy KV blocks between NeuronCores and the host",
        ragged_rows=False,
        default_step_tokens=512,
        speculation_methods=("draft_model", "eagle", "eagle3"),
        adaptive_speculation=False,
        lora=True,
        splits_model=True,
        own_memory=True,
        heeds_accelerator_keys=True,
        idle_keys={"async_mode": "steps are not overlapped inside the library yet, and tokens are the same without"},
        key_rules=(KeyRule("kv_cache_quant", _NO_KV_QUANT), KeyRule("kv_quant_config", _NO_KV_QUANT)),
    )
    device_model = "vllm.targets.neuronx.model:NeuronxDeviceModel"
    versions = tuple(SDK)

    def why_absent(self) -> str:
        if not self.has_hardware():
            return "there is no Neuron device on this machine (/dev/neuron*)"
        if not self.compiles_here():
            return f"the package {PACKAGE} is not installed (see requirements-neuron.txt)"
        return ""

    def has_hardware(self) -> bool:
        return host_platform.has_neuron_device()

    def compiles_here(self) -> bool:
        return importlib.util.find_spec(ROOT) is not None

    def check(self, config: VllmConfig, neuron_config: NeuronConfig, faults: Faults) -> None:
        checks.check(config, neuron_config, faults)

    def read_version(self, text: str) -> Version:
        version = parse_version(text)
        if version not in SDK:
            raise ValueError(f"NxD Inference {text} is not known; known: {OLDEST} to {NEWEST}")
        return version

    def support(self, hf_config: Mapping[str, Any]) -> Support:
        question = "known to NxD Inference"
        found = registry.first_version(hf_config)
        if found is None:
            return Support(None, question, "not registered")
        key, since = found
        value = {"key": key, "since": str(since), "sdk": SDK[since]}
        return Support(value, question, f"{key}, from {since} (SDK {SDK[since]})")

    def check_model(self, config: VllmConfig, neuron_config: NeuronConfig, version: Version, faults: Faults) -> None:
        checks.check_with(config, neuron_config, version, faults)

    def is_portable(self, config: VllmConfig) -> bool:
        return is_portable(config)

    def adapter_slots(self, neuron_config: NeuronConfig, version: Version) -> int:
        return adapters.num_slots(neuron_config, version)

    def files(
        self, neuron_config: NeuronConfig, shards: Mapping[str, int], num_programs: int, portable: bool
    ) -> list[PlannedFile]:
        files = [PlannedFile("neuron_config.json")]
        ranks = neuron_config.tp_degree * neuron_config.ep_degree
        rank, count = ("0", "") if ranks == 1 else (f"{{0..{ranks - 1}}}", f" ({ranks})")
        for directory, shard_bytes in shards.items():
            files.append(PlannedFile(f"{directory}model.pt"))
            if portable:
                name = f"{directory}weights/tp{rank}_sharded_checkpoint.safetensors{count}"
                files.append(PlannedFile(name, ranks * shard_bytes))
        return files

    def plan_notices(self, platform: str, version: Version) -> list[str]:
        newest = _LAST_WITH_KERNELS_ON.get(platform)
        if newest is None or version <= newest:
            return []
        return [
            f"NxD Inference's NKI kernels stopped on {platform} with SDK {SDK[version]}; AWS advises SDK {SDK[newest]} "
            "there"
        ]


TARGET = NeuronxTarget()
