"""The table of environment variables: typed, documented, and no longer than what is read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vllm import envs

PACKAGE = Path(envs.__file__).parent


def test_defaults_without_environment(monkeypatch):
    for name in envs.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert {name: getattr(envs, name) for name in envs.VARIABLES} == {
        name: variable.default for name, variable in envs.VARIABLES.items()
    }


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("NEURON_ON_DEVICE_SAMPLING_DISABLED", "1", True),
        ("NEURON_ON_DEVICE_SAMPLING_DISABLED", "true", True),
        ("NEURON_ON_DEVICE_SAMPLING_DISABLED", "0", False),
        ("NEURON_ON_DEVICE_SAMPLING_DISABLED", "", False),
        ("NEURON_CONTEXT_LENGTH_BUCKETS", "128, 512,2048", [128, 512, 2048]),
        ("NEURON_TOKEN_GEN_BUCKETS", "[128,512]", [128, 512]),
        ("NEURON_TOKEN_GEN_BUCKETS", "", []),
        ("NEURON_LOGICAL_NC_CONFIG", "2", 2),
        ("NEURON_PLATFORM_TARGET_OVERRIDE", "trn2", "trn2"),
        ("VLLM_NULL_STEP_MS", "1.5", 1.5),
    ],
)
def test_values_are_read_by_type_at_each_access(name, text, value, monkeypatch):
    monkeypatch.setenv(name, text)
    assert getattr(envs, name) == value


@pytest.mark.parametrize(
    ("name", "text", "works"),
    [
        ("NEURON_ON_DEVICE_SAMPLING_DISABLED", "maybe", "true"),
        ("NEURON_CONTEXT_LENGTH_BUCKETS", "128;512", "128,512"),
        ("NEURON_PLATFORM_TARGET_OVERRIDE", "trn9", "trn2"),
    ],
)
def test_a_bad_value_names_the_variable_the_value_and_what_works(name, text, works, monkeypatch):
    monkeypatch.setenv(name, text)
    with pytest.raises(ValueError, match=re.escape(f"{name}='{text}'")) as caught:
        getattr(envs, name)
    assert works in str(caught.value)


def test_unknown_variables_are_attribute_errors():
    with pytest.raises(AttributeError, match="VLLM_NO_SUCH"):
        _ = envs.VLLM_NO_SUCH


def test_every_variable_is_read_somewhere_and_explained():
    source = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    read = set(re.findall(r"\benvs\.([A-Z][A-Z0-9]*_[A-Z0-9_]+)", source))
    assert read - envs.VARIABLES.keys() == set()
    assert envs.VARIABLES.keys() - read == set(), "listed but never read"
    assert all(variable.help.endswith(".") for variable in envs.VARIABLES.values())
