"""HF transformers as the oracle, in every version that tests run with (4.51 to 5.x): what they call by other names."""

from __future__ import annotations

import inspect
from typing import Any

import transformers

IS_OLD = int(transformers.__version__.partition(".")[0]) < 5
"""Before transformers 5, which reads GGUF files and YaRN's settings differently: no oracle for those."""

_HAS_ROPE_PARAMETERS = hasattr(transformers.LlamaConfig(), "rope_parameters")
_DTYPE = "torch_dtype" if IS_OLD else "dtype"


def load_model(path: Any, dtype: Any, **options: Any) -> Any:
    """A checkpoint's causal language model in this dtype."""
    return transformers.AutoModelForCausalLM.from_pretrained(path, **{_DTYPE: dtype}, **options)


def rope_settings(parameters: dict[str, Any]) -> dict[str, Any]:
    """Keywords of a config class. parameters: rope_type, rope_theta and what the type needs."""
    if _HAS_ROPE_PARAMETERS:
        return {"rope_parameters": parameters}
    scaling = {name: value for name, value in parameters.items() if name != "rope_theta"}
    settings = {"rope_theta": parameters["rope_theta"]} if "rope_theta" in parameters else {}
    return settings if scaling.get("rope_type") == "default" else {**settings, "rope_scaling": scaling}


def rope_of(config: Any) -> dict[str, Any]:
    """rope_theta and rope_type of a config: an object, or what was saved of one."""
    entries = config if isinstance(config, dict) else config.to_dict()
    if entries.get("rope_parameters"):
        return dict(entries["rope_parameters"])
    scaling = dict(entries.get("rope_scaling") or {})
    kind = scaling.pop("rope_type", scaling.pop("type", "default"))
    return {"rope_theta": entries["rope_theta"], "rope_type": kind, **scaling}


def initial_frequencies(kind: str, config: Any, length: int | None) -> Any:
    """(inv_freq, attention factor) as transformers begins with them."""
    function = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS[kind]
    device = {"device": "cpu"} if "device" in inspect.signature(function).parameters else {}
    return function(config, seq_len=length, **device)
