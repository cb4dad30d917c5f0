"""Finding the artifact that a configuration needs, or making it.

An artifact is named by the SHA-256 of its key: the weights' content, the resolved Neuron config, bucket ladders, the
model's own config, the KV layout, and what the target says shapes its output (compiler and layout versions). Equal keys
load; nothing else does. Paths are no part of a key, so artifacts can be copied between machines.

Where, in this order:
  1. NEURON_COMPILED_ARTIFACTS: if it is itself an artifact and its key is the one needed, it is loaded as it is;
     otherwise it is a store, and artifacts are `<it>/<hash>`.
  2. Without that variable `<checkpoint directory>/neuron-compiled-artifacts/<hash>`.
  3. Where that cannot be written, or is full, `<VLLM_CACHE_ROOT>/neuron-compiled-artifacts/<hash>`; of a checkpoint
     that an installed Python package holds, there first.

A store or an artifact that somebody else may have written is passed over, with a line in the log.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vllm import envs
from vllm.artifacts.fingerprint import adapter_files, cache_root, fingerprint
from vllm.artifacts.manifest import MANIFEST, ArtifactError, DamagedArtifact, Manifest, key_hash, verify
from vllm.artifacts.store import REMEDY, ArtifactStore, FullStore, trust_fault
from vllm.checkpoint.files import weight_files
from vllm.config import SpeculativeConfig, VllmConfig
from vllm.device.model import DeviceModel, Progress
from vllm.logger import init_logger
from vllm.settings.neuron_config import heeded
from vllm.settings.target import find_target

__all__ = [
    "ArtifactError",
    "ArtifactInfo",
    "DamagedArtifact",
    "Opened",
    "artifact_key",
    "diff_keys",
    "find_artifact",
    "open_or_compile",
]

logger = init_logger(__name__)

STORE_NAME = "neuron-compiled-artifacts"
_PACKAGES = frozenset(("site-packages", "dist-packages"))
_FOREIGN = "model.pt"
"""What other integrations of NxD Inference leave directly in their artifact directory."""

_NOT_CONTENT = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")
"""Entries of a model's config that say nothing about the arithmetic; dtype is a key of its own."""


@dataclass(slots=True)
class ArtifactInfo:
    """How an artifact was found. reason: why it was loaded or made. diff: key by key, against the nearest other one."""

    hash: str
    reason: str = ""
    diff: list[str] = field(default_factory=list)
    waited_seconds: float = 0.0
    compile_seconds: float = 0.0


class Opened(NamedTuple):
    """directory: the verified artifact. hit: nothing was compiled by this call."""

    directory: Path
    hit: bool
    info: ArtifactInfo


def artifact_key(config: VllmConfig, target: type[DeviceModel]) -> dict[str, Any]:
    """Everything that shapes the artifact of a resolved config, as JSON types."""
    return {**common_key(config), "compiler": target.artifact_key(config)}


def common_key(config: VllmConfig) -> dict[str, Any]:
    """The artifact's key without what is the target's own."""
    model, neuron_config = config.model_config, config.neuron_config
    neuron = heeded(neuron_config, find_target(config.target).profile)
    quantized_path = neuron.pop("quantized_checkpoints_path")
    if neuron["lora_config"]:
        neuron["lora_config"] |= _adapters(neuron["lora_config"])
    return {
        "target": config.target,
        "weights": _weights(Path(model.model_path or model.model), model.load_format, model.seed),
        "draft": _draft(config.speculative_config),
        "quantized_weights": _weights(Path(quantized_path), "auto", 0) if quantized_path else None,
        "model": _content(model.hf_config),
        "dtype": model.dtype,
        "neuron_config": neuron,
        "buckets": {"context_encoding": neuron_config.context_buckets, "token_generation": neuron_config.token_buckets},
        "kv_cache": {
            "dtype": config.cache_config.kv_cache_dtype,
            "block_size": config.cache_config.block_size,
            "num_blocks": config.cache_config.num_blocks,
        },
    }


def _adapters(lora_config: Mapping[str, Any]) -> dict[str, Any]:
    """Adapters by content instead of by path, in their order."""
    return {
        name: [[adapter, fingerprint(adapter_files(Path(path)))] for adapter, path in (lora_config[name] or {}).items()]
        for name in ("lora_ckpt_paths", "lora_ckpt_paths_cpu")
    }


def _draft(speculation: SpeculativeConfig | None) -> dict[str, Any] | None:
    """What drafts, if a model does."""
    if speculation is None or not speculation.uses_model:
        return None
    return {
        "method": speculation.method,
        "weights": _weights(Path(speculation.model_path), speculation.load_format, 0),
        "model": _content(speculation.hf_config),
    }


def _content(hf_config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in hf_config.items() if name not in _NOT_CONTENT}


def _weights(path: Path, load_format: str, seed: int) -> dict[str, Any]:
    return {"dummy": seed} if load_format == "dummy" else dict(fingerprint(weight_files(path, load_format)))


def diff_keys(found: Mapping[str, Any], needed: Mapping[str, Any]) -> list[str]:
    """Lines such as "neuron_config.batch_size: 4 in the artifact, 8 needed", in order of name.

    A section that one of the two lacks is one line.
    """
    return [
        f"{name}: {_shown(left)} in the artifact, {_shown(right)} needed"
        for name, left, right in _differing(found, needed, "")
    ]


_ABSENT = object()


def _differing(left: Mapping[str, Any], right: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any, Any]]:
    for name in sorted(left.keys() | right.keys()):
        one, other = left.get(name, _ABSENT), right.get(name, _ABSENT)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from _differing(one, other, f"{prefix}{name}.")
        elif one != other:
            yield f"{prefix}{name}", one, other


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "nothing"
    if isinstance(value, Mapping) and value:
        return f"a section of {', '.join(sorted(value))}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class Rejected:
    """Artifacts that were found and could not be loaded, by what they are, not by where they lie."""

    def __init__(self) -> None:
        self._faults: dict[tuple[int, int], str] = {}

    def add(self, artifact: Path, fault: str) -> None:
        self._faults[self._identity(artifact)] = f"the artifact {artifact} cannot be run: {fault}"

    def fault(self, artifact: Path) -> str:
        """Why `artifact` is one of them; "" if it is not."""
        return self._faults.get(self._identity(artifact), "")

    @staticmethod
    def _identity(artifact: Path) -> tuple[int, int]:
        found = artifact.stat()
        return found.st_dev, found.st_ino


class Found(NamedTuple):
    """What a search for an artifact gave."""

    directory: Path | None
    """The verified artifact; None if there is none: then `info` says why, and how the nearest differs."""
    info: ArtifactInfo
    key: dict[str, Any]
    """What was looked for."""
    stores: list[ArtifactStore]
    """Places that can be trusted, best first; one more artifact can be made in those of them that can be written."""


def find_artifact(config: VllmConfig, target: type[DeviceModel], rejected: Rejected | None = None) -> Found:
    """Look for the artifact of a resolved config, and make nothing.

    rejected: artifacts that are passed over.
    Raises ArtifactError where there is no store that can be trusted.
    """
    key = artifact_key(config, target)
    info = ArtifactInfo(key_hash(key))
    stores = _trusted(_stores(config))
    found = _open_found(_candidates(stores, info.hash), info, rejected or Rejected())
    if found is None:
        _explain(stores, key, info)
    return Found(found, info, key, stores)


def _trusted(stores: list[ArtifactStore]) -> list[ArtifactStore]:
    """The stores that nobody else can have written. Raises ArtifactError if there is none."""
    faults = {store.directory: fault for store in stores if (fault := store.fault())}
    if len(faults) == len(stores):
        raise ArtifactError(f"no place for artifacts can be trusted: {'; '.join(faults.values())}. {REMEDY}")
    for fault in faults.values():
        logger.warning("artifacts there are not used: %s. %s", fault, REMEDY)
    return [store for store in stores if store.directory not in faults]


def open_or_compile(
    config: VllmConfig,
    target: type[DeviceModel],
    progress: Progress,
    *,
    to_load: bool = False,
    rejected: Rejected | None = None,
) -> Opened:
    """The artifact of a resolved config, verified; compiled and published first where there is none.

    to_load: it will be loaded here, so that what would not fit is not compiled. rejected: artifacts that are passed
    over.
    Raises ArtifactError where none matches and compiling was forbidden (`compile=False`), or none can be written.
    """
    rejected = rejected or Rejected()
    found, info, key, stores = find_artifact(config, target, rejected)
    if found is not None:
        return Opened(found, True, info)
    if not config.neuron_options.compile:
        raise ArtifactError(f"{info.reason}, and --no-compile forbids making one" + _listed(info.diff))
    writable = [store for store in stores if store.is_writable()]
    if not writable:
        where = ", ".join(str(store.directory) for store in stores)
        raise ArtifactError(f"{info.reason}, and none can be written to {where}. Set NEURON_COMPILED_ARTIFACTS")
    if to_load:
        target.check_fits(config)
    logger.info("%s: compiling%s", info.reason, _listed(info.diff))
    num_bytes = target.artifact_bytes(config)
    faults = []
    for store in writable:
        try:
            store.check_room(num_bytes)
            return _compile(config, target, progress, store, key, info, num_bytes, rejected)
        except FullStore as error:
            logger.warning("%s", error)
            faults.append(str(error))
    raise ArtifactError(f"{'; '.join(faults)}. Make room, or set NEURON_COMPILED_ARTIFACTS to a place that has it")


def _compile(
    config: VllmConfig,
    target: type[DeviceModel],
    progress: Progress,
    store: ArtifactStore,
    key: dict[str, Any],
    info: ArtifactInfo,
    num_bytes: int,
    rejected: Rejected,
) -> Opened:
    path = store.path(info.hash)
    with store.locked(info.hash) as info.waited_seconds:
        if found := _open_found([path], info, rejected):
            return Opened(found, True, info)
        with store.making(info.hash, key, num_bytes) as directory:
            target.compile(config, directory, progress)
        info.compile_seconds = Manifest.read(path).compile_seconds
    return Opened(path, False, info)


def _stores(config: VllmConfig) -> list[ArtifactStore]:
    if envs.NEURON_COMPILED_ARTIFACTS:
        return [ArtifactStore(Path(envs.NEURON_COMPILED_ARTIFACTS).expanduser())]
    model = Path(config.model_config.model_path or config.model_config.model)
    beside = ArtifactStore((model.parent if model.is_file() else model) / STORE_NAME)
    shared = ArtifactStore(cache_root() / STORE_NAME)
    is_installed = not _PACKAGES.isdisjoint(model.resolve().parts)
    return [shared, beside] if is_installed else [beside, shared]


def _candidates(stores: list[ArtifactStore], name: str) -> list[Path]:
    """Directories that may be the artifact `name`: its place in each store, or a store that is itself one."""
    paths = []
    for store in stores:
        if (store.directory / MANIFEST).is_file() and _hash_of(store.directory) == name:
            paths.append(store.directory)
        paths.append(store.path(name))
    return paths


def _hash_of(directory: Path) -> str:
    try:
        return Manifest.read(directory).hash
    except DamagedArtifact as error:
        logger.warning("%s", error)
        return ""


def _open_found(paths: list[Path], info: ArtifactInfo, rejected: Rejected) -> Path | None:
    """The first of `paths` that is the whole artifact. Others are reported and left as they are."""
    for path in paths:
        if not path.is_dir():
            continue
        try:
            fault = rejected.fault(path) or _untrusted(path)
            found = "" if fault else verify(path).hash
        except DamagedArtifact as error:
            fault, found = str(error), ""
        if fault:
            info.reason = fault
            logger.warning("%s", fault)
        elif found == info.hash:
            info.reason = f"the artifact {path} matches"
            return path
    return None


def _untrusted(path: Path) -> str:
    fault = trust_fault(path)
    return f"the artifact {path} is not used: {fault}. {REMEDY}" if fault else ""


def _explain(stores: list[ArtifactStore], key: dict[str, Any], info: ArtifactInfo) -> None:
    """Say why nothing was found: damage, or how the nearest artifact differs."""
    if info.reason:
        return
    foreign = next((store.directory for store in stores if (store.directory / _FOREIGN).is_file()), None)
    if foreign:
        info.reason = f"{foreign} was compiled without a {MANIFEST}, so nothing says what settings it fits"
        return
    others = [found for store in stores for found in [*_itself(store), *store.manifests()]]
    if not others:
        info.reason = f"there is no artifact in {' or '.join(str(store.directory) for store in stores)}"
        return
    diffs = [(diff_keys(manifest.key, key), path) for path, manifest in others]
    info.diff, nearest = min(diffs, key=lambda item: len(item[0]))
    info.reason = f"no artifact matches; the nearest, {nearest}, differs"


def _itself(store: ArtifactStore) -> list[tuple[Path, Manifest]]:
    try:
        return [(store.directory, Manifest.read(store.directory))]
    except DamagedArtifact:
        return []


def _listed(lines: list[str]) -> str:
    return "".join(f"\n  {line}" for line in lines)
