"""`make_plan`: everything that could fail later, and what it will take, from a config alone.

A plan is made for a target whether or not this machine has it. All faults are gathered. Where the Neuron config itself
cannot be built, sizes are worked out for the plain settings (degree, rows, lengths, dtype): faults of memory do not
hide behind faults of spelling.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import psutil

from vllm import envs
from vllm.config import VllmConfig
from vllm.plan.companions import adapter_bytes, draft_memory
from vllm.plan.instances import DEFAULT_LNC, INSTANCES, Instance
from vllm.plan.memory import CoreMemory
from vllm.plan.model_source import ModelSource
from vllm.plan.weights import (
    Sharding,
    Weight,
    bytes_per_core,
    missing_entries,
    weights_of_config,
    weights_of_header,
)
from vllm.settings import resolve as platform
from vllm.settings.faults import Fault, Faults, NeuronConfigError
from vllm.settings.neuron_config import NeuronConfig, torch_dtype
from vllm.settings.options import merged_override
from vllm.settings.parallel import HeadSharding
from vllm.settings.programs import Program, programs_of
from vllm.settings.target import AUTOMATIC, PLANNED, Support, Target, Version, find_target
from vllm.sizes import DTYPE_BYTES, GIB

HOST_BASE_BYTES = 4 * GIB
"""What the system, the process and the compiler take of the host beside weights: an estimate."""


@dataclass(slots=True)
class Plan:
    """What was worked out. Sizes in bytes, of one logical core unless a name says host. `report` makes JSON of it.

    memory: None where config.json does not say enough. budget: of a core; None without an instance.
    """

    source: ModelSource
    target: Target
    version: Version
    instance: Instance | None
    config: VllmConfig
    neuron_config: NeuronConfig
    heads: HeadSharding | None
    weights: list[Weight] = field(default_factory=list)
    memory: CoreMemory | None = None
    programs: list[Program] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    @property
    def parameters(self) -> int:
        return sum(weight.values for weight in self.weights)

    @property
    def lnc(self) -> int:
        return self.neuron_config.logical_nc_config

    @property
    def share(self) -> float:
        return self.config.cache_config.gpu_memory_utilization

    @property
    def checkpoint_bytes(self) -> int:
        stored = str(self.source.config.get("torch_dtype") or "bfloat16")
        return self.source.checkpoint_bytes or self.parameters * DTYPE_BYTES.get(stored, 2)

    @property
    def budget(self) -> int | None:
        return self.budget_on(self.instance) if self.instance else None

    def budget_on(self, instance: Instance) -> int:
        """Bytes that the plan may take of one core's memory."""
        return int(instance.hbm_bytes_per_core(lnc_on(instance, self.neuron_config)) * self.share)

    @property
    def is_portable(self) -> bool:
        """Whether the artifact holds the weights, so that it loads without the checkpoint."""
        return self.target.is_portable(self.config.replace(neuron_config=self.neuron_config))

    @property
    def parts_bytes(self) -> int:
        """Weights of all cores together."""
        ranks = self.neuron_config.tp_degree * self.neuron_config.ep_degree
        return ranks * self.memory.weight_bytes if self.memory else 0

    @property
    def host_bytes(self) -> int:
        """Host memory that compiling takes, an estimate: the checkpoint being sharded, and every core's part."""
        if self.memory is None:
            return 0
        if not self.target.profile.own_memory:
            return self.memory.total() + HOST_BASE_BYTES
        return self.checkpoint_bytes + self.parts_bytes + HOST_BASE_BYTES

    @property
    def host_bytes_to_load(self) -> int:
        """Host memory that loading takes, an estimate: every core's part, where the artifact holds them."""
        if self.memory is None or not self.target.profile.own_memory or not self.is_portable:
            return self.host_bytes
        return self.parts_bytes + HOST_BASE_BYTES

    def fits_on(self, instance: Instance) -> str:
        """Why the plan cannot run on `instance`; "" if it can."""
        if self.memory is None:
            return "sizes are unknown"
        lnc = lnc_on(instance, self.neuron_config)
        if self.neuron_config.tp_degree not in instance.degrees(lnc):
            return f"degrees: {', '.join(map(str, instance.degrees(lnc)))}"
        if self.memory.total() > self.budget_on(instance):
            return "device memory"
        return "host memory" if self.host_bytes > instance.host_bytes else ""


def lnc_on(instance: Instance, neuron_config: Any) -> int:
    """Physical cores of a logical one on `instance`: what the config says where the platform can, else 1."""
    return int(neuron_config.logical_nc_config) if instance.platform == "trn2" else 1


def make_plan(
    config: VllmConfig,
    source: ModelSource,
    target: str = PLANNED,
    instance: Instance | None = None,
    version: Version | None = None,
    faults: Faults | None = None,
) -> Plan:
    """The plan of a config that is not resolved yet: see `EngineArgs.examined_config`.

    version: of the library; the newest by default. faults: what was found already, to be told with the rest.
    """
    device, version = find_target(target), version or find_target(PLANNED).versions[-1]
    faults = Faults() if faults is None else faults
    config = _with_lnc(config, instance)
    resolved, neuron_config, notices, is_exact = _resolved(config, device, instance, faults)
    device.check_model(resolved, neuron_config, version, faults)
    heads = HeadSharding.from_hf_config(neuron_config.tp_degree, source.config)
    plan = Plan(source, device, version, instance, resolved, neuron_config, heads, notices=notices)
    _size(plan, faults)
    if is_exact:
        plan.programs = programs_of(neuron_config, source.config)
    _check_instance(plan, faults)
    _check_memory(plan, faults)
    plan.faults = list(dict.fromkeys(faults.found))
    if heads is not None:
        plan.notices = [notice for notice in notices if not notice.startswith(heads.describe())]
    _add_notices(plan)
    return plan


def _with_lnc(config: VllmConfig, instance: Instance | None) -> VllmConfig:
    """The config with the instance's logical cores, where nobody said otherwise."""
    override = merged_override(config.neuron_options, Faults())
    said = "logical_nc_config" in override or envs.NEURON_LOGICAL_NC_CONFIG or envs.NEURON_RT_VIRTUAL_CORE_SIZE
    if instance is None or said:
        return config
    options = config.neuron_options
    extended = {**options.override_neuron_config, "logical_nc_config": DEFAULT_LNC[instance.platform]}
    return config.replace(neuron_options=dataclasses.replace(options, override_neuron_config=extended))


def _resolved(
    config: VllmConfig, target: Target, instance: Instance | None, faults: Faults
) -> tuple[VllmConfig, NeuronConfig, list[str], bool]:
    """The config as it will run, or as near to it as can be; notices; and whether it is what was asked for."""
    examined = platform.examine(config, target.profile.name, faults)
    if not faults:
        resolved, notices = platform.resolved_of(examined)
        return resolved, resolved.neuron_config, notices, True
    if instance is not None and target.profile.splits_model:
        faults.found = [fault for fault in faults.found if not _is_about_degree(fault)]
    return examined.config, examined.neuron_config, faults.notes, examined.is_exact


def _is_about_degree(fault: Fault) -> bool:
    """Whether `_check_instance` will say the same of a certain instance."""
    return fault.name == "tensor_parallel_size" and "degree" in fault.why


def _size(plan: Plan, faults: Faults) -> None:
    hf_config = plan.source.config
    missing = missing_entries(hf_config)
    if plan.heads is None or missing:
        why = f"it does not say {', '.join(missing)}, so that nothing can be counted"
        faults.add("config.json", str(plan.source.path), why, "Use the model's own config.json")
        return
    plan.weights = weights_of_header(plan.source.shapes) if plan.source.shapes else weights_of_config(hf_config)
    config, heads = plan.neuron_config, plan.heads
    if not plan.target.profile.splits_model:
        heads = HeadSharding.plan(1, heads.num_heads, heads.num_kv_heads, heads.head_dim)
        config = dataclasses.replace(config, tp_degree=1, world_size=1, local_ranks_size=1, cp_degree=1)
    plan.memory = _memory(plan, heads, config)


def _memory(plan: Plan, heads: HeadSharding, config: Any) -> CoreMemory:
    """Of the model with what it brings along, split as `heads` and `config` say."""
    hf_config, value_bytes = plan.source.config, _kv_value_bytes(plan)
    sharding = Sharding.of(heads, config, hf_config)
    weights = bytes_per_core(plan.weights, sharding, config, hf_config)
    if plan.source.is_gguf:
        weights = {"as stored": plan.source.checkpoint_bytes}
    slots = plan.target.adapter_slots(config, plan.version)
    if adapters := adapter_bytes(plan.config.lora_config, plan.weights, sharding, config, slots):
        weights["adapters"] = adapters
    draft = draft_memory(plan.config.speculative_config, config, value_bytes)
    if draft:
        weights["draft"] = draft.weight_bytes
    return CoreMemory(hf_config, heads, config, weights, value_bytes, draft)


def _kv_value_bytes(plan: Plan) -> int:
    config = plan.neuron_config
    if config.kv_cache_quant or config.kv_quant_config is not None:
        return 1
    given = plan.config.cache_config.kv_cache_dtype
    return DTYPE_BYTES.get(torch_dtype(given), 1) if given != "auto" else DTYPE_BYTES[config.torch_dtype]


def _check_instance(plan: Plan, faults: Faults) -> None:
    instance, degree = plan.instance, plan.neuron_config.tp_degree
    if instance is None or not plan.target.profile.splits_model:
        return
    lnc = plan.lnc
    if lnc != 1 and instance.platform != "trn2":
        why = f"{instance.platform} has no logical cores of two physical ones"
        faults.add("logical_nc_config", lnc, why, "Leave it out, or use 1")
        return
    degrees = instance.degrees(lnc)
    if degree not in degrees:
        cores = instance.logical_cores(lnc)
        why = f"{instance.name} has {cores} logical cores; valid degrees there: {', '.join(map(str, degrees))}"
        below = max((each for each in degrees if each <= degree), default=degrees[0])
        faults.add("tensor_parallel_size", degree, why, f"Use {below}, or a larger instance", involves=["tp_degree"])


def _check_memory(plan: Plan, faults: Faults) -> None:
    memory, instance = plan.memory, plan.instance
    if memory is None:
        return
    if not plan.target.profile.own_memory:
        host = instance.host_bytes if instance else psutil.virtual_memory().total
        if memory.total() > host:
            why = f"weights, KV cache and scratch take {gib(memory.total())}, the host has {gib(host)}"
            faults.add("max_model_len", plan.neuron_config.seq_len, why, "Lower max_num_seqs or max_model_len")
        return
    if instance is None:
        return
    budget = plan.budget_on(instance)
    if memory.total() > budget:
        faults.found.append(_memory_fault(plan, memory, instance, budget))
    if plan.host_bytes > instance.host_bytes:
        faults.found.append(_host_fault(plan, instance))


def _host_fault(plan: Plan, instance: Instance) -> Fault:
    why = (
        f"compiling takes about {gib(plan.host_bytes)} of the host (checkpoint {gib(plan.checkpoint_bytes)}, cores' "
        f"parts {gib(plan.parts_bytes)}, compiler and system {gib(HOST_BASE_BYTES)}); {instance.name} has "
        f"{gib(instance.host_bytes)}"
    )
    fixes = []
    if plan.host_bytes_to_load <= instance.host_bytes:
        load = gib(plan.host_bytes_to_load)
        fixes.append(f"Compile on a larger host (`vllm neuron compile`): loading the artifact takes about {load}")
    if roomier := _roomier(plan):
        fixes.append(roomier)
    return Fault("host memory", "", why, ". ".join(fixes) or "Use a smaller checkpoint")


def _memory_fault(plan: Plan, memory: CoreMemory, instance: Instance, budget: int) -> Fault:
    config = plan.neuron_config
    why = (
        f"a core needs {gib(memory.total())} (weights {gib(memory.weight_bytes)}, KV cache {gib(memory.kv_bytes())}, "
        f"scratch about {gib(memory.activations())}); {instance.name} gives it {gib(budget)} "
        f"({plan.share:.0%} of {gib(instance.hbm_bytes_per_core(plan.lnc))})"
    )
    fixes = []
    if rows := memory.most_rows(budget):
        fixes.append(f"max_num_seqs={rows}")
    if length := memory.longest(budget, config.seq_len):
        fixes.append(f"max_model_len={length}")
    fixes += _larger_degrees(plan, instance)
    if fixes:
        return Fault("device memory", "", why, f"Use {', or '.join(fixes)}")
    return Fault("device memory", "", why, _roomier(plan) or "Use a smaller or quantised checkpoint")


def _larger_degrees(plan: Plan, instance: Instance) -> list[str]:
    """The smallest degree that holds the plan as it is; failing that, the one that holds most rows, with how many."""
    budget, rows = plan.budget_on(instance), plan.neuron_config.batch_size
    larger = [degree for degree in instance.degrees(plan.lnc) if degree > plan.neuron_config.tp_degree]
    most = {degree: memory.most_rows(budget) for degree in larger if (memory := memory_at(plan, degree))}
    for degree, count in most.items():
        if count >= rows:
            return [f"tensor_parallel_size={degree}"]
    best = max(most, key=lambda degree: most[degree], default=0)
    return [f"tensor_parallel_size={best} with max_num_seqs={most[best]}"] if best and most[best] else []


def memory_at(plan: Plan, degree: int) -> CoreMemory | None:
    """The plan's memory with another degree; None where that degree contradicts other keys."""
    if plan.memory is None or plan.heads is None:
        return None
    config = plan.neuron_config
    try:
        changed = dataclasses.replace(
            config,
            tp_degree=degree,
            world_size=degree * config.pp_degree * config.ep_degree,
            local_ranks_size=degree * config.pp_degree * config.ep_degree,
        )
    except NeuronConfigError:
        return None
    heads = HeadSharding.plan(degree, plan.heads.num_heads, plan.heads.num_kv_heads, plan.heads.head_dim)
    return _memory(plan, heads, changed)


def _roomier(plan: Plan) -> str:
    names = [name for name, instance in INSTANCES.items() if not plan.fits_on(instance)]
    return f"It fits on {', '.join(names)}" if names else ""


def _add_notices(plan: Plan) -> None:
    if plan.instance is not None:
        plan.notices += plan.target.plan_notices(plan.instance.platform, plan.version)
    if plan.neuron_config.cp_degree > 1:
        plan.notices.append("cp_degree: what context parallelism adds to a core's weights is not counted")
    if plan.source.shapes and plan.weights and not plan.source.is_gguf:
        counted = sum(weight.values for weight in weights_of_config(plan.source.config))
        if counted != plan.parameters:
            plan.notices.append(
                f"the headers hold {plan.parameters:,} values, config.json makes {counted:,}; the headers were believed"
            )
    if plan.source.config.get("vision_config") and not any("vision" in weight.name for weight in plan.weights):
        plan.notices.append("the image encoder's weights are not counted")
    speculation = plan.config.speculative_config
    if speculation is not None and speculation.uses_model and (plan.memory is None or plan.memory.draft is None):
        plan.notices.append("the draft's config does not say how large it is: it is not counted")


def support_of(plan: Plan) -> dict[str, Support]:
    """Which of the targets that run models run this one, by target."""
    answers = {name: find_target(name).support(plan.source.config) for name in AUTOMATIC}
    return {name: support for name, support in answers.items() if support is not None}


def gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"
