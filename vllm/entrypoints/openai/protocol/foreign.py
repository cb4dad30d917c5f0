"""Names that requests of other servers have, which clients send to any: llama.cpp, Ollama, TGI, SGLang, Mistral's API.

Where the meaning is clear they are read as ours. Samplers that are not here are refused unless their value switches
them off. What only says how to serve a request is a hint.
"""

from __future__ import annotations

from typing import Any

from vllm.entrypoints.fields import Alias, Unsupported
from vllm.sample.table import ROWS, Effect

HINTS = {
    "cache_prompt": "equal prefixes are found by themselves.",
    "id_slot": "the server chooses the row.",
    "keep_alive": "the model stays loaded.",
    "prompt_cache_retention": "prefixes stay while there is room.",
    "session_id": "requests are independent of one another.",
    "verbosity": "the model has no such switch.",
}

_SAMPLERS = [f"`{name}`" for name, row in ROWS.items() if row.effect is Effect.CANDIDATES]
_NO_SAMPLER = f"there is no such sampler; there are {', '.join(_SAMPLERS[:-1])} and {_SAMPLERS[-1]}."
_OFF_AT_ZERO = (
    "dry_multiplier",
    "dynatemp_range",
    "epsilon_cutoff",
    "eta_cutoff",
    "mirostat",
    "mirostat_mode",
    "smoothing_factor",
    "top_a",
    "xtc_probability",
)
SAMPLERS: dict[str, Unsupported] = {
    **dict.fromkeys(_OFF_AT_ZERO, Unsupported(_NO_SAMPLER, (None, 0, 0.0))),
    **dict.fromkeys(("tfs_z", "typ_p", "typical_p"), Unsupported(_NO_SAMPLER, (None, 1, 1.0))),
    "do_sample": Unsupported("`temperature`: 0 takes the most likely token.", (None, True)),
    "num_beams": Unsupported("use `use_beam_search` with `n`.", (None, 1)),
    "options": Unsupported("its entries stand at the top level here.", (None, {})),
    "repeat_penalty": Unsupported("use `repetition_penalty`.", (None, 1, 1.0)),
    "top_n_sigma": Unsupported(_NO_SAMPLER, (None, -1, 0, -1.0, 0.0)),
    "watermark": Unsupported("outputs are not watermarked.", (None, False)),
}


_ALL_THAT_FITS = 2**31 - 1


def _limit(value: Any) -> Any:
    """llama.cpp and Ollama write -1 for no limit, and -2 for what the context holds."""
    return _ALL_THAT_FITS if value in (-1, -2) else value


TOKEN_ALIASES: dict[str, Alias] = {
    "max_new_tokens": Alias("max_tokens"),
    "min_new_tokens": Alias("min_tokens"),
    "n_predict": Alias("max_tokens", _limit),
    "num_predict": Alias("max_tokens", _limit),
    "random_seed": Alias("seed"),
    "stop_sequences": Alias("stop"),
}


def thinking_switch(value: Any) -> bool | None:
    """Of `thinking`, as DeepSeek and GLM have it: an object of type enabled or disabled."""
    kind = value.get("type") if isinstance(value, dict) else None
    if kind not in ("enabled", "disabled"):
        raise ValueError("an object of type enabled or disabled")
    return bool(kind == "enabled")
