"""Reference pages made from the tables in the code, so that they cannot say anything else.

`python -m vllm.settings.reference_docs DIRECTORY` writes `neuron_config.md` and `environment.md` there.
"""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path

from vllm import envs
from vllm.settings.neuron_config import NeuronConfig
from vllm.settings.neuron_config_checks import ADVICE
from vllm.settings.neuron_config_sections import (
    ChunkedPrefillConfig,
    HybridShardingConfig,
    KVQuantizationConfig,
    LoraServingConfig,
    OnDeviceSamplingConfig,
    TensorCaptureConfig,
    VisionNeuronConfig,
)
from vllm.settings.section import KeyInfo, Section

SECTIONS: dict[str, type[Section]] = {
    "on_device_sampling_config": OnDeviceSamplingConfig,
    "chunked_prefill_config": ChunkedPrefillConfig,
    "kv_quant_config": KVQuantizationConfig,
    "lora_config": LoraServingConfig,
    "hybrid_sharding_config": HybridShardingConfig,
    "tensor_capture_config": TensorCaptureConfig,
    "vision_neuron_config": VisionNeuronConfig,
}

_CONFIG_HEAD = """\
# The Neuron config

What a model is compiled and served with, in NxD Inference's terms. vLLM's settings give the usual keys their values
(`tensor_parallel_size` → `tp_degree`, `max_num_seqs` → `batch_size`, `max_model_len` → `seq_len`, `dtype` →
`torch_dtype`, `block_size` → `pa_block_size`, `num_gpu_blocks_override` → `pa_num_blocks`); the rest is replaced key by
key:

```python
LLM(model, additional_config={"override_neuron_config": {"enable_bucketing": False}})
LLM(model, override_neuron_config={"enable_bucketing": False})
```

```sh
vllm serve MODEL --additional-config '{"override_neuron_config": {"enable_bucketing": false}}'
vllm serve MODEL --override-neuron-config '{"enable_bucketing": false}'
```

A key and the vLLM setting of the same meaning must agree; where only one of them is given, the other follows it. An
unknown key, a wrong type, a value out of range and keys that contradict each other are errors, all reported at once.

Keys marked † shape only the accelerator's programs: other targets accept them, compute the same without them, and say
so at start. Defaults are NxD Inference's own; "vLLM:" in a description gives the value that serving uses instead. A
default that names other keys is worked out from them.
"""

_BUCKETS_NOTE = """\
Without lists, buckets are powers of two from 128 up to the longest length, the last of them left out where it is within
a factor of √2 of that. A prompt of n tokens runs in the first bucket greater than n; the largest bucket also takes its
own length. A decoded token at position p runs in the first bucket greater than p. A list must ascend; if it ends below
the longest length, that length is added, so that every legal request is served.
"""

_ENVIRONMENT_HEAD = """\
# Environment variables

Every variable that the package reads. Variables of the Neuron runtime and compiler are theirs and pass through.

| Variable | Default | Meaning |
| --- | --- | --- |
"""


def neuron_config_page() -> str:
    """docs/neuron_config.md."""
    pieces = [_CONFIG_HEAD]
    for group, infos in groupby(NeuronConfig.describe(), key=lambda info: info.group):
        pieces.append(f"## {group}\n")
        if group == "Buckets":
            pieces.append(_BUCKETS_NOTE)
        pieces.append(_table(list(infos)))
    pieces.append("# Nested sections\n")
    for name, section in SECTIONS.items():
        pieces += [f"## `{name}`\n", _table(section.describe())]
    pieces.append("# Names that other versions and backends use\n")
    pieces.append(
        rows_of(["Name", "Why it is refused", "What to do"], [[f"`{n}`", *ADVICE[n]] for n in sorted(ADVICE)])
    )
    return "\n".join(pieces)


def environment_page() -> str:
    """docs/environment.md."""
    rows = [f"| `{name}` | {_code(_default(v.default))} | {v.help} |\n" for name, v in sorted(envs.VARIABLES.items())]
    return _ENVIRONMENT_HEAD + "".join(rows)


def _default(value: object) -> str:
    return "" if value in ("", []) else str(value)


def _table(infos: list[KeyInfo]) -> str:
    rows = [
        [f"`{info.name}`" + (" †" if info.accelerator_only else ""), info.type, _code(info.default), info.help]
        for info in infos
    ]
    return rows_of(["Key", "Type", "Default", "Meaning"], rows)


def rows_of(head: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def main(directory: str) -> None:
    Path(directory, "neuron_config.md").write_text(neuron_config_page(), encoding="utf-8")
    Path(directory, "environment.md").write_text(environment_page(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
