"""EC2 instances with NeuronCores: chips, cores, device memory of each core, host memory.

Figures are AWS's published ones, in GiB. A logical core is `lnc` physical cores of one chip used as one; tensor
parallelism counts logical cores.
"""

from __future__ import annotations

from dataclasses import dataclass

from vllm.settings.faults import nearest
from vllm.settings.parallel import valid_degrees
from vllm.sizes import GIB

CORES_PER_CHIP = {"inf2": 2, "trn1": 2, "trn2": 8}
HBM_GIB_PER_CHIP = {"inf2": 32, "trn1": 32, "trn2": 96}
DEFAULT_LNC = {"inf2": 1, "trn1": 1, "trn2": 2}


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance type. platform: "inf2", "trn1" or "trn2"; host_gib: memory of the host."""

    name: str
    platform: str
    chips: int
    vcpus: int
    host_gib: int

    @property
    def host_bytes(self) -> int:
        return self.host_gib * GIB

    def logical_cores(self, lnc: int) -> int:
        return self.chips * CORES_PER_CHIP[self.platform] // lnc

    def hbm_bytes_per_core(self, lnc: int) -> int:
        """Device memory of one logical core: its share of its chip's."""
        return HBM_GIB_PER_CHIP[self.platform] * GIB * lnc // CORES_PER_CHIP[self.platform]

    def degrees(self, lnc: int) -> list[int]:
        """Tensor-parallel degrees that the platform has and this instance holds."""
        return [degree for degree in valid_degrees(self.platform) if degree <= self.logical_cores(lnc)]

    def to_dict(self, lnc: int) -> dict[str, object]:
        return {
            "name": self.name,
            "platform": self.platform,
            "chips": self.chips,
            "logical_nc_config": lnc,
            "logical_cores": self.logical_cores(lnc),
            "hbm_bytes_per_core": self.hbm_bytes_per_core(lnc),
            "host_bytes": self.host_bytes,
            "vcpus": self.vcpus,
        }


INSTANCES = {
    instance.name: instance
    for instance in (
        Instance("inf2.xlarge", "inf2", chips=1, vcpus=4, host_gib=16),
        Instance("inf2.8xlarge", "inf2", chips=1, vcpus=32, host_gib=128),
        Instance("inf2.24xlarge", "inf2", chips=6, vcpus=96, host_gib=384),
        Instance("inf2.48xlarge", "inf2", chips=12, vcpus=192, host_gib=768),
        Instance("trn1.2xlarge", "trn1", chips=1, vcpus=8, host_gib=32),
        Instance("trn1.32xlarge", "trn1", chips=16, vcpus=128, host_gib=512),
        Instance("trn1n.32xlarge", "trn1", chips=16, vcpus=128, host_gib=512),
        Instance("trn2.3xlarge", "trn2", chips=1, vcpus=12, host_gib=128),
        Instance("trn2.48xlarge", "trn2", chips=16, vcpus=192, host_gib=2048),
        Instance("trn2u.48xlarge", "trn2", chips=16, vcpus=192, host_gib=2048),
    )
}


def find_instance(name: str) -> Instance:
    """The instance type `name`. Raises ValueError that names the nearest one."""
    if name not in INSTANCES:
        hint = nearest(name, INSTANCES) or f"Known: {', '.join(INSTANCES)}"
        raise ValueError(f"unknown instance type {name!r}. {hint}")
    return INSTANCES[name]
