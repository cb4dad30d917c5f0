"""docs/neuronx_models.md from the table of entries: `python -m vllm.targets.neuronx.reference_docs FILE` writes it."""

from __future__ import annotations

import sys
from pathlib import Path

from vllm.settings.reference_docs import rows_of
from vllm.targets.neuronx.model_entries import FUSED_QKV_SINCE, HARMLESS, READ, ROWS
from vllm.targets.neuronx.versions import NEWEST, OLDEST

_HEAD = f"""\
# A model's own config on the neuronx target

NxD Inference has model classes of its own. Each reads some entries of a model's config.json and drops the others
without a word. Here is what versions {OLDEST} to {NEWEST} compute as transformers does, by architecture; a start and
`vllm neuron plan` refuse every other value by name. An entry that is not listed is refused too, unless it is null,
false, zero or empty, or changes no arithmetic (below). Who knows that an entry changes nothing says so:
`--hf-overrides '{{"that_entry": null}}'`. Entries of a draft are not judged: a draft changes how fast tokens come, not
which.

`tests/neuronx/test_real_library.py` holds the table against the library.
"""


def models_page() -> str:
    """docs/neuronx_models.md."""
    pieces = [_HEAD]
    for architecture, rows in ROWS.items():
        pieces.append(f"## {architecture}\n")
        plain = ", ".join(f"`{name}`" for name, row in rows.items() if row is READ)
        pieces.append(f"Any value: {plain}.\n")
        others = [[f"`{name}`", row.text] for name, row in rows.items() if row is not READ]
        pieces.append(rows_of(["Entry", "Computed"], others))
        if architecture in FUSED_QKV_SINCE:
            since = FUSED_QKV_SINCE[architecture]
            pieces.append(f"`fused_qkv` of the Neuron config: {f'from {since}' if since else 'in no version'}.\n")
    pieces.append("## Without effect on what is computed\n")
    names = ", ".join(f"`{name}`" for name in sorted(HARMLESS))
    pieces.append(f"{names}; names that begin with `_` or `unsloth`, or end with `_version`.\n")
    return "\n".join(pieces)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(models_page(), encoding="utf-8")
