"""What the `cpu` target can do, before a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vllm import envs
from vllm.checkpoint.forms import INSTEAD, READ, unsupported_form
from vllm.config import VllmConfig
from vllm.core.profile import BlockRule, KeyRule, TargetProfile
from vllm.settings.faults import NOTHING, Faults
from vllm.settings.neuron_config import NeuronConfig
from vllm.settings.target import PlannedFile, Support, Target, Version, rules_of_own_programs
from vllm.sizes import GIB
from vllm.targets.cpu.models import supported_architectures

if TYPE_CHECKING:
    from vllm.targets.cpu.ops import KvDtype
    from vllm.targets.cpu.packing import Scheme

SCHEMES: dict[str, Scheme] = {"auto": "native", "float32": "f32", "bfloat16": "bf16"}
"""What becomes of unquantised weights, by `dtype`."""
QUANTISED: dict[str, Scheme] = {
    "int8_per_tensor": "int8_tensor",
    "int8_per_channel": "int8",
    "f8e4m3_per_tensor": "f8_tensor",
    "f8e4m3_per_channel": "f8",
    "int4": "q4_min",
}
"""What becomes of weights that are to be quantised, by the form asked for."""
KV_DTYPES: dict[str, KvDtype] = {"bfloat16": "bf16", "float32": "f32", "fp8": "f8", "int8": "int8"}
"""Kernels' names of what KV is stored as."""


class CpuTarget(Target):
    profile = TargetProfile(
        name="cpu",
        dtypes=("bfloat16", "float32"),
        kv_dtypes=("auto", *KV_DTYPES),
        quantizations=tuple(QUANTISED),
        quantizes=True,
        blocks=BlockRule(multiple=16),
        block_kv_by_default=True,
        speculation_methods=("ngram", "draft_model", "eagle", "eagle3"),
        key_rules=(
            *rules_of_own_programs("cpu"),
            KeyRule("modules_to_not_convert", "the cpu target knows no exceptions from quantisation"),
        ),
    )
    device_model = "vllm.targets.cpu.model:CpuDeviceModel"

    def default_kv_bytes(self) -> int | None:
        return int(envs.VLLM_CPU_KVCACHE_SPACE * GIB) if envs.VLLM_CPU_KVCACHE_SPACE else None

    def check(self, config: VllmConfig, neuron_config: NeuronConfig, faults: Faults) -> None:
        speculation = config.speculative_config
        for name, hf_config in (
            ("model", config.model_config.hf_config),
            ("speculative_config", speculation.hf_config if speculation is not None else {}),
        ):
            if form := unsupported_form(hf_config):
                why = f"its weights are quantised by {form}, which the cpu target does not read. It reads {READ}"
                faults.add(name, NOTHING, why, INSTEAD)

    def architectures(self) -> Sequence[str]:
        return supported_architectures()

    def support(self, hf_config: Mapping[str, Any]) -> Support:
        runs = any(name in supported_architectures() for name in hf_config.get("architectures") or [])
        return Support(runs, "known to the cpu target", "yes" if runs else "no")

    def check_model(self, config: VllmConfig, neuron_config: NeuronConfig, version: Version, faults: Faults) -> None:
        hf_config = config.model_config.hf_config
        if not self.support(hf_config).value:
            given = (hf_config.get("architectures") or ["(none)"])[0]
            known = ", ".join(supported_architectures())
            faults.add("architectures", given, "the cpu target does not run it", f"Known: {known}")

    def files(
        self, neuron_config: NeuronConfig, shards: Mapping[str, int], num_programs: int, portable: bool
    ) -> list[PlannedFile]:
        return [
            PlannedFile("index.json"),
            PlannedFile("weights.bin"),
            PlannedFile(f"programs/*.json ({num_programs})"),
        ]


TARGET = CpuTarget()
