"""Checks to run on a machine with Neuron devices; see README.md beside it.

Prints a line for each, and exits with status 1 if one failed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.settings.resolve import choose_target

MAX_LEN = 256
GREEDY = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
PROMPTS = [[7], [7, 8], [7, 8, 9], list(range(10, 60)), list(range(10, 140)), [250 - i for i in range(100)]]

MANY = [[3 + (7 * i + 11 * j) % 250 for j in range(5 + i)] for i in range(30)]

OVERRIDES: dict[str, dict[str, Any]] = {
    "device": {"enable_bucketing": False},
    "host": {"on_device_sampling_config": None},
}


class Checks:
    """One model, opened as each check needs it.

    sampling: "device", compiled for one length, so that a row's arithmetic is the same whatever is beside it; or
    "host", compiled for the usual buckets.
    """

    def __init__(self, model: str, degree: int) -> None:
        self.model, self.degree = model, degree
        self.llms: dict[str, LLM] = {}

    def llm(self, sampling: str = "device") -> LLM:
        if sampling not in self.llms:
            self.llms.clear()
            self.llms[sampling] = self.open("neuronx", OVERRIDES[sampling])
        return self.llms[sampling]

    def open(self, device: str, override: dict[str, Any] | None = None, **options: Any) -> LLM:
        return LLM(
            model=self.model,
            device=device,
            tensor_parallel_size=self.degree,
            max_num_seqs=4,
            max_model_len=MAX_LEN,
            override_neuron_config=override or {},
            **options,
        )

    def device_and_library(self) -> None:
        """device and library found"""
        from vllm.settings.faults import Faults

        faults = Faults()
        choose_target("neuronx", faults)
        faults.raise_if_any("this machine")

    def company(self) -> None:
        """short prompts and long ones, alone and together"""
        together = _tokens(self.llm(), PROMPTS)
        alone = [_tokens(self.llm(), [prompt])[0] for prompt in PROMPTS]
        _equal(together, alone)

    def lines(self) -> None:
        """rows join and leave without changing the others"""
        lengths = [3, 16, 7, 12, 5, 9]
        params = [SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True) for length in lengths]
        found = _tokens(self.llm(), PROMPTS, params)
        _equal(found, [row[:length] for row, length in zip(_tokens(self.llm(), PROMPTS), lengths, strict=True)])

    def refusals(self) -> None:
        """unsupported parameters are refused by name"""
        try:
            _tokens(self.llm(), PROMPTS[:1], SamplingParams(temperature=0.5, seed=1))
        except VLLMValidationError as error:
            _require("seed" in str(error), str(error))
        else:
            _require(False, "a seed was accepted")

    def last_position(self) -> None:
        """the last position is served"""
        prompt = list(range(3, 3 + MAX_LEN - 2))
        found = _tokens(self.llm(), [prompt], SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True))
        _require(len(found[0]) == 2, f"{len(found[0])} tokens instead of 2")

    def cpu(self) -> None:
        """tokens are those of the cpu target"""
        _mostly_equal(_tokens(self.llm(), MANY), _tokens(self.open("cpu"), MANY))

    def second_start(self) -> None:
        """a second start compiles nothing"""
        self.llms.clear()
        self.llms["device"] = self.open("neuronx", OVERRIDES["device"], compile=False)

    def host_sampling(self) -> None:
        """host sampling agrees with on-device greedy"""
        on_device = _tokens(self.llm(), MANY)
        _mostly_equal(_tokens(self.llm("host"), MANY), on_device)


def _tokens(llm: LLM, prompts: list[list[int]], params: Any = GREEDY) -> list[list[int]]:
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def _equal(found: list[list[int]], expected: list[list[int]]) -> None:
    for i, (row, other) in enumerate(zip(found, expected, strict=True)):
        _require(row == other, f"prompt {i}: {row} instead of {other}")


def _mostly_equal(found: list[list[int]], expected: list[list[int]]) -> None:
    """First tokens only, and not all: logits may tie in bfloat16, and what follows another token is another text."""
    equal = sum(row[0] == other[0] for row, other in zip(found, expected, strict=True))
    _require(equal * 10 >= len(found) * 9, f"{equal} of {len(found)} first tokens agree")


def _require(holds: bool, text: str) -> None:
    if not holds:
        raise AssertionError(text)


def run(checks: Checks) -> bool:
    """All checks in order; whether all passed. The first is a condition of the others."""
    passed = True
    steps: list[Callable[[], None]] = [
        checks.device_and_library,
        checks.company,
        checks.lines,
        checks.refusals,
        checks.last_position,
        checks.cpu,
        checks.second_start,
        checks.host_sampling,
    ]
    for check in steps:
        try:
            check()
            print(f"{check.__doc__:<48} ok", flush=True)
        except Exception:
            passed = False
            print(f"{check.__doc__:<48} FAILED", flush=True)
            traceback.print_exc()
            if check == checks.device_and_library:
                break
    print("all checks passed" if passed else "some checks failed")
    return passed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--tensor-parallel-size", "-tp", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model = options.model
        if model is None:
            from tests.tiny import make_checkpoint

            model = str(make_checkpoint(Path(scratch) / "model"))
        passed = run(Checks(model, options.tensor_parallel_size))
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
