"""docs/neuron_cli.md: its figures are what `plan` prints, and its tables of instances and commands are whole."""

from __future__ import annotations

import argparse
import importlib
import re

import pytest

from tests.cli.neuron import CONFIGS, plan
from vllm import envs
from vllm.entrypoints.cli.neuron import COMMANDS
from vllm.entrypoints.openai.cli_args import make_arg_parser
from vllm.plan.instances import INSTANCES
from vllm.utils import FlexibleArgumentParser

DOCUMENT = (CONFIGS.parents[2] / "docs" / "neuron_cli.md").read_text()
ROWS = re.findall(
    r"^\| ([\w.-]+) \| `(--instance [^`]+)` \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", DOCUMENT, re.MULTILINE
)


FLAGS_OF_OTHER_TOOLS = {"--chmod", "--extra-index-url", "--install", "--set"}
"""COPY, pip and helm."""
VARIABLES_OF_OTHERS = {"NEURON_QUANT_DTYPE", "VLLM_USE_V1"}
"""What the fork and vLLM read, and nothing here does."""


def number(text: str) -> int:
    return int(text.replace(",", ""))


def test_every_config_is_in_the_table():
    assert {row[0] for row in ROWS} == {path.name for path in CONFIGS.iterdir()}


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_the_table_of_figures(capsys, row):
    config, flags, parameters, weights, kv_cache = row
    _, found = plan(capsys, config, *flags.split())
    assert found["model"]["parameters"] == number(parameters)
    assert found["memory_per_core"]["weights_total"] == number(weights)
    assert found["memory_per_core"]["kv_cache"] == number(kv_cache)
    assert [fault["name"] for fault in found["faults"]] in ([], ["architectures"])


def test_the_worked_example_adds_up():
    lines = re.findall(r"^    (\w[\w ]*?)  +(.+?) += +([\d,]+)", DOCUMENT, re.MULTILINE)
    total = re.search(r"^ {20,}([\d,]+)$", DOCUMENT, re.MULTILINE)
    assert len(lines) == 7 and total
    for _, formula, result in lines:
        assert eval(formula.replace("×", "*")) == number(result)
    assert sum(number(result) for *_, result in lines) == number(total[1])


def test_the_worked_example_is_what_plan_prints(capsys):
    lines = re.findall(r"^    (\w[\w ]*?)  +.+? += +([\d,]+)", DOCUMENT, re.MULTILINE)
    _, found = plan(capsys, "llama-3.1-8b", *next(row[1] for row in ROWS if row[0] == "llama-3.1-8b").split())
    memory = found["memory_per_core"]
    printed = {**memory["weights"], "KV cache": memory["kv_cache"], "scratch": memory["scratch_estimate"]}
    assert {name: number(result) for name, result in lines} == printed


def test_formulas_in_the_text_are_what_plan_prints(capsys):
    formulas = re.findall(r"`([\d,/ ×+()]+) = ([\d,]+)`", DOCUMENT.replace("\n", " "))
    for formula, result in formulas:
        assert eval(formula.replace("×", "*").replace(",", "")) == number(result)
    flags = {row[0]: row[1].split() for row in ROWS}
    qwen, scout = (
        plan(capsys, config, *flags[config])[1]["memory_per_core"]["weights"]
        for config in ("qwen3-30b-a3b", "llama-4-scout")
    )
    printed = [qwen["experts"], scout["attention"], scout["mlp"] + scout["experts"], scout["vision"]]
    assert [number(result) for _, result in formulas] == printed


@pytest.mark.parametrize("page", ["deployment", "migration", "neuron_cli", "neuronx"])
def test_flags_and_variables_in_the_guides_exist(page):
    text = (CONFIGS.parents[2] / "docs" / f"{page}.md").read_text()
    parsers = [make_arg_parser(FlexibleArgumentParser())]
    parsers += [importlib.import_module(f"vllm.entrypoints.cli.neuron.{name}")._parser() for name in COMMANDS]
    known = {flag for parser in parsers for flag in _flags_of(parser)} | FLAGS_OF_OTHER_TOOLS
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text)) <= known
    variables = set(re.findall(r"\b(?:NEURON|VLLM|BASE)_[A-Z0-9_]+", text))
    assert variables <= envs.VARIABLES.keys() | VARIABLES_OF_OTHERS


def _flags_of(parser):
    """Of a parser and of the commands below it."""
    yield from parser._option_string_actions
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _flags_of(command)


def test_instances_and_commands_are_named():
    assert all(name in DOCUMENT for name in INSTANCES)
    assert all(f"## {name}\n" in DOCUMENT for name in COMMANDS)
