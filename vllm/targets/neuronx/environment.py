"""What the Neuron runtime and compiler read from the environment, and who holds the cores.

The runtime reads its variables when its packages are first imported. `prepare` sets them before that, keeps what a user
has set, and refuses to go on where it comes too late.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from vllm import envs
from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.targets.neuronx.library import is_imported

logger = init_logger(__name__)

_FP8 = ("f8e4m3", "f8e5m2")
_CORES_TAKEN = ("not available", "nrt_allocate_neuron_cores", "NRT_EXEC_NC_BUSY", "NRT_LOAD_NOT_ENOUGH_NC")


def wanted_variables(config: VllmConfig) -> dict[str, str]:
    """Variables that this configuration needs, without those a user has set to the purpose."""
    neuron = config.neuron_config
    wanted = {
        "NEURON_LOGICAL_NC_CONFIG": str(neuron.logical_nc_config),
        "NEURON_RT_VIRTUAL_CORE_SIZE": str(neuron.logical_nc_config),
    }
    if not envs.NEURON_RT_VISIBLE_CORES and not envs.NEURON_RT_NUM_CORES:
        wanted["NEURON_RT_NUM_CORES"] = str(neuron.local_ranks_size)
    if neuron.quantized and neuron.quantization_dtype in _FP8:
        wanted |= {"XLA_HANDLE_SPECIAL_SCALAR": "1", "UNSAFE_FP8FNCAST": "1"}
    return wanted


def prepare(config: VllmConfig) -> None:
    """Set the variables. Raises RuntimeError where too few cores are visible, or the runtime is imported already."""
    _check_cores(config.neuron_config.local_ranks_size)
    changes = dict(wanted_variables(config).items() - os.environ.items())
    if changes and is_imported():
        listed = " ".join(f"{name}={value}" for name, value in changes.items())
        raise RuntimeError(
            f"the Neuron runtime was imported before its variables were set. Start with {listed}, or import "
            "neither torch_neuronx nor neuronx_distributed_inference before the engine"
        )
    os.environ.update(changes)
    if changes:
        logger.info("neuronx: set %s", " ".join(f"{name}={value}" for name, value in changes.items()))


def _check_cores(needed: int) -> None:
    name, text = "NEURON_RT_VISIBLE_CORES", envs.NEURON_RT_VISIBLE_CORES
    shown = len(visible_cores(text))
    if not text and envs.NEURON_RT_NUM_CORES:
        name, text = "NEURON_RT_NUM_CORES", str(envs.NEURON_RT_NUM_CORES)
        shown = envs.NEURON_RT_NUM_CORES
    if text and shown < needed:
        raise RuntimeError(
            f"{name}={text} shows {shown} NeuronCores, but tensor_parallel_size takes {needed}. "
            f"Show {needed} or more, or leave it out"
        )


def visible_cores(text: str) -> list[int]:
    """The cores that NEURON_RT_VISIBLE_CORES names, such as "0-3,8". Raises ValueError for any other text."""
    cores: set[int] = set()
    for part in text.split(",") if text.strip() else []:
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        named = range(int(match[1]), int(match[2] or match[1]) + 1) if match else range(0)
        if not named:
            raise ValueError(f"NEURON_RT_VISIBLE_CORES={text!r} cannot be read. Use for example 0-3 or 0,1,4-7")
        cores.update(named)
    return sorted(cores)


# Who holds the cores.


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that the driver says holds a device."""

    pid: int
    command: str
    device: int
    is_alive: bool


def holders() -> list[Holder]:
    """Processes with a device in their hands, as `neuron-ls` reports them; none where there is no such tool."""
    tool = shutil.which("neuron-ls")
    if tool is None:
        return []
    try:
        run = subprocess.run([tool, "--json-output"], capture_output=True, text=True, timeout=30, check=True)
        devices = json.loads(run.stdout)
        return [
            Holder(process["pid"], str(process.get("command", "?")), device["neuron_device"], _is_alive(process["pid"]))
            for device in devices
            for process in device.get("neuron_processes") or []
        ]
    except (OSError, ValueError, KeyError, TypeError, subprocess.SubprocessError) as error:
        logger.warning("neuron-ls does not say who holds the cores: %s", error)
        return []


def _is_alive(pid: int) -> bool:
    """Whether a process runs here; one that has ended and is not yet buried does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in ("Z", "X")


def explain_load_failure(error: BaseException) -> str:
    """What to say when a model cannot be loaded: the error, and where cores are taken, by whom."""
    text = str(error) or type(error).__name__
    if not any(sign in text for sign in _CORES_TAKEN):
        return text
    others = [holder for holder in holders() if holder.pid != os.getpid()]
    if not others:
        return f"{text}. The cores are held by another process, or there are fewer than asked for: see neuron-ls"
    listed = [_describe(holder) for holder in others]
    return f"{text}. {'. '.join(listed)}"


def _describe(holder: Holder) -> str:
    subject = f"device {holder.device} is held by process {holder.pid} ({holder.command})"
    if holder.is_alive:
        return f"{subject}, which is running: end it, or choose other cores with NEURON_RT_VISIBLE_CORES"
    return (
        f"{subject}, which is dead here: wait for the driver to take its cores back, or reload the driver "
        "(or it lives in another container)"
    )
