"""Device targets before a model is loaded: what each can do, and what its own checks say. The registry of targets.

A target's folder has one `Target` object, which is imported by name and only from here; its `device_model` is the
class that compiles and runs (see `device`). Code outside the targets asks these objects and names no target.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vllm.config import VllmConfig
from vllm.core.profile import KeyRule, TargetProfile
from vllm.settings.faults import Faults
from vllm.settings.neuron_config import NeuronConfig

TARGETS = {
    "cpu": "vllm.targets.cpu.profile:TARGET",
    "null": "vllm.targets.null:TARGET",
    "neuronx": "vllm.targets.neuronx.profile:TARGET",
}
AUTOMATIC = ("neuronx", "cpu")
"""Targets that `device="auto"` chooses from: the first that can run on this machine."""
PLANNED = "neuronx"
"""The target that `vllm neuron plan` plans for where none is named."""


class Version(NamedTuple):
    """Version of the library that a target drives."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


class Support(NamedTuple):
    """Whether a target runs a model."""

    value: Any
    """JSON types; null or false where it does not."""
    question: str
    """Label for people, such as "known to the cpu target"."""
    answer: str


class Target:
    """One device target. Methods here answer for a target with nothing of its own to say."""

    profile: TargetProfile
    device_model: str
    """The `DeviceModel`, as "module:class"."""
    versions: Sequence[Version] = ()
    """Known versions of the library that it drives, oldest first; empty without a library."""

    def why_absent(self) -> str:
        """Why the target cannot run on this machine; "" if it can."""
        return ""

    def has_hardware(self) -> bool:
        """Whether this machine has hardware that only this target uses, even if it cannot run."""
        return False

    def compiles_here(self) -> bool:
        """Whether artifacts can be compiled on this machine although nothing can run."""
        return False

    def default_kv_bytes(self) -> int | None:
        """Most bytes of the KV cache where no option bounds it; None: no bound."""
        return None

    def check(self, config: VllmConfig, neuron_config: NeuronConfig, faults: Faults) -> None:
        """Add faults that the profile cannot tell."""

    # Planning: nothing needs to be installed.

    def read_version(self, text: str) -> Version:
        """The known version of the library that `text` names. Raises ValueError, listing the known ones."""
        raise ValueError(f"the {self.profile.name} target drives no library that has versions")

    def architectures(self) -> Sequence[str]:
        """Those of config.json that it runs, where that is known without its library."""
        return ()

    def support(self, hf_config: Mapping[str, Any]) -> Support | None:
        """Whether it runs the model; None for a target that runs none."""
        return None

    def check_model(self, config: VllmConfig, neuron_config: NeuronConfig, version: Version, faults: Faults) -> None:
        """Add faults of the model and of keys that this version of the library cannot run, or would not heed."""

    def is_portable(self, config: VllmConfig) -> bool:
        """Whether the artifact holds the weights, so that it loads without the checkpoint."""
        return True

    def adapter_slots(self, neuron_config: NeuronConfig, version: Version) -> int:
        """Copies of LoRA weights that each core holds."""
        return 0

    def files(
        self, neuron_config: NeuronConfig, shards: Mapping[str, int], num_programs: int, portable: bool
    ) -> list[PlannedFile]:
        """Files of the artifact beside its manifest.

        shards: by directory of programs and weights ("" for the artifact's own), bytes of one core's weights there.
        portable: the weights are among the files.
        """
        return []

    def plan_notices(self, platform: str, version: Version) -> list[str]:
        """What a user who plans for this platform and version should know."""
        return []


class PlannedFile(NamedTuple):
    """bytes: None where only compiling tells."""

    path: str
    bytes: int | None = None


def find_target(name: str) -> Target:
    """The target called `name`. Raises ValueError for an unknown name, listing the known ones."""
    if name not in TARGETS:
        raise ValueError(f"unknown device target {name!r}; known targets: {', '.join(sorted(TARGETS))}")
    return imported(TARGETS[name])  # type: ignore[no-any-return]


def imported(path: str) -> Any:
    """What "module:attribute" names."""
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


def automatic_target() -> Target:
    """The target of `device="auto"`: the first of `AUTOMATIC` that can run here, else the last of them."""
    targets = [find_target(name) for name in AUTOMATIC]
    return next((target for target in targets if not target.why_absent()), targets[-1])


def unused_hardware(name: str) -> str:
    """Why hardware of this machine that `device="auto"` would prefer to target `name` is not used; "" if none is."""
    preferred = AUTOMATIC[: AUTOMATIC.index(name)] if name in AUTOMATIC else ()
    for target in map(find_target, preferred):
        if target.has_hardware() and (reason := target.why_absent()):
            return reason
    return ""


def rules_of_own_programs(name: str) -> tuple[KeyRule, ...]:
    """Rules of targets whose programs are this package's: requests bring their sampling, 8-bit KV is e4m3."""
    return (
        KeyRule(
            "on_device_sampling_config.dynamic",
            f"the {name} target compiles no sampling values in: each request brings its own",
            accepts=(True,),
        ),
        KeyRule(
            "on_device_sampling_config.deterministic",
            f"the {name} target draws by each request's seed",
            "Leave it out, and give requests a seed",
        ),
        KeyRule(
            "kv_quant_config.quant_dtype",
            f"the {name} target keeps 8-bit floats as float8_e4m3fn",
            "Use float8_e4m3fn, or leave it out",
            accepts=("float8_e4m3fn",),
        ),
        KeyRule(
            "kv_quant_config.direct_cast",
            f"the {name} target casts keys and values without a scale of their tensor",
            'Leave it out; kv_cache_dtype="int8" keeps a scale for each token and head',
            accepts=(True,),
        ),
    )
