"""Programs and indexes that cannot be run: refused whole, in words, with nothing done.

csrc/tests/fuzz/ has mutants of the same by the thousand, under sanitizers.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.neuron.configs import build
from vllm.artifacts.manifest import DamagedArtifact
from vllm.checkpoint import open_checkpoint
from vllm.settings.resolve import resolve
from vllm.targets.cpu.model import CpuDeviceModel
from vllm.targets.cpu.ops import Malformed, NativeModel, ThreadPool

Change = Callable[[Any], Any]


@pytest.fixture(scope="module")
def config(tiny_llama: Path) -> Any:
    options = {"model": str(tiny_llama), "model_path": str(tiny_llama), "hf_config": open_checkpoint(tiny_llama).config}
    return resolve(build(**options, max_model_len=64, max_num_seqs=2, device="cpu"))


@pytest.fixture(scope="module")
def artifact(config: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("artifact")
    CpuDeviceModel.compile(config, directory, lambda what, share: None)
    return directory


@pytest.fixture(scope="module")
def index(artifact: Path) -> Any:
    return json.loads((artifact / "index.json").read_text())


@pytest.fixture(scope="module")
def program(artifact: Path) -> Any:
    return json.loads((artifact / "programs" / "mixed.json").read_text())


def opened(artifact: Path, index: Any) -> NativeModel:
    shape = {"num_blocks": 4, "block_size": 64, "max_context": 64, "kv_dtype": "f32", "pool": ThreadPool(1)}
    return NativeModel(artifact / "weights.bin", index, **index["kv"], **shape)


def op(program: Any, kind: str) -> Any:
    return next(op for op in program["ops"] if op["kind"] == kind)


def test_what_is_compiled_can_be_run(artifact: Path, index: Any, program: Any) -> None:
    assert opened(artifact, index).add_program(program) == 0


PROGRAMS: dict[str, tuple[Change, str]] = {
    "offset": (
        lambda p: op(p, "embed")["output"].update(offset=1 << 40),
        r"op 1 .*'embed': its output, 128 tokens x 64",
    ),
    "huge offset": (lambda p: op(p, "embed")["output"].update(offset=2**63 - 64), "does not lie in the arena of"),
    "last row": (lambda p: p.update(arena_bytes=p["arena_bytes"] - 64), "does not lie in the arena of"),
    "odd offset": (lambda p: op(p, "embed")["output"].update(offset=4), "does not begin at a multiple of 64 bytes"),
    "input": (lambda p: op(p, "attention")["inputs"][0].update(offset=1 << 40), "input 0"),
    "width": (lambda p: op(p, "rope_kv")["inputs"][1].update(width=2**31 - 1), "has 2147483647 columns"),
    "no width": (lambda p: op(p, "embed")["output"].update(width=0), "has 0 columns"),
    "rows": (
        lambda p: op(p, "embed")["output"].update(rows="samples"),
        "runs on tokens, its output's rows are samples",
    ),
    "unlike rows": (lambda p: p["ops"][-2]["inputs"][0].update(rows="tokens"), "differ in their kind of rows"),
    "unknown rows": (
        lambda p: op(p, "embed")["output"].update(rows="all"),
        r"ops\[1\].output.rows is neither tokens nor",
    ),
    "no input": (lambda p: op(p, "select").update(inputs=[]), "'select': it lacks input 0"),
    "too many inputs": (lambda p: op(p, "select")["inputs"].append(op(p, "embed")["output"]), "does not take input 1"),
    "tokens": (lambda p: p.update(max_tokens=2**30), "a program needs ops, tokens"),
    "no ops": (lambda p: p.update(ops=[]), "a program needs ops, tokens"),
    "unknown op": (lambda p: p["ops"][0].update(kind="enbed"), "unknown op 'enbed'"),
    "no weight": (lambda p: op(p, "embed").update(weights={}), "lacks its weight 'weight'"),
    "unknown weight": (lambda p: op(p, "embed").update(weights={"weight": "x"}), "there is no weight 'x'"),
    "further weight": (lambda p: op(p, "embed")["weights"].update(bias="embed"), "does not take bias"),
    "other weight": (lambda p: op(p, "linear")["weights"].update(norm="inv_freq"), "is not a vector of 64 numbers"),
    "layer": (lambda p: op(p, "rope_kv")["attrs"].update(layer=2), "the KV cache has no such layer"),
    "missing layer": (lambda p: op(p, "rope_kv")["attrs"].update(layer=1), None),
    "half a head": (lambda p: op(p, "rope_kv")["attrs"].update(num_heads=2.5), "'num_heads' is 2.5.* a whole number"),
    "many heads": (lambda p: op(p, "attention")["attrs"].update(num_heads=2.0**31), "'num_heads' is 2147483648"),
    "window": (lambda p: op(p, "attention")["attrs"].update(window=1e300), "'window' is"),
    "eps": (lambda p: op(p, "linear")["attrs"].update(eps=1e300), "which is no float32"),
    "no attribute": (lambda p: op(p, "attention")["attrs"].pop("scale"), "lacks the attribute 'scale'"),
    "misspelt": (lambda p: op(p, "linear")["attrs"].update(acumulate=1), "does not take acumulate"),
    "not finite": (
        lambda p: op(p, "attention")["attrs"].update(scale=float("nan")),
        "attrs.scale is not a finite number",
    ),
    "huge number": (lambda p: op(p, "attention")["attrs"].update(scale=10**400), "attrs.scale is not a finite number"),
    "text": (lambda p: op(p, "embed")["output"].update(offset="0"), r"ops\[1\].output.offset is not a whole number"),
    "negative": (lambda p: op(p, "embed")["output"].update(offset=-64), "offset is not from 0 to"),
    "no output": (lambda p: p["ops"][0].pop("output"), r"ops\[0\] lacks 'output'"),
    "ops as object": (lambda p: p.update(ops={}), "ops is not a list"),
    "surrogate": (lambda p: p["ops"][0].update(kind="\ud800"), "is not text that can be written"),
}


@pytest.mark.parametrize(("change", "words"), PROGRAMS.values(), ids=PROGRAMS)
def test_malformed_programs(artifact: Path, index: Any, program: Any, change: Change, words: str | None) -> None:  # S4
    model = opened(artifact, index)
    changed = copy.deepcopy(program)
    change(changed)
    if words is None:
        words = "the program works on|has no such layer|works on 1 layers"
        for each in changed["ops"]:
            if each["kind"] in ("rope_kv", "attention"):
                each["attrs"]["layer"] = 0
    with pytest.raises(Malformed, match=words):
        model.add_program(changed)
    assert model.memory()["arena"] == 0, "nothing was done"
    assert model.add_program(program) == 0


def weight(index: Any) -> Any:
    return next(entry for entry in index["weights"].values() if entry["format"] == "bf16")


INDEXES: dict[str, tuple[Change, str]] = {
    "version": (lambda i: i.update(version=0), "layout version 0"),
    "offset": (lambda i: weight(i).update(offset=2**62), "lies outside"),
    "odd offset": (lambda i: weight(i).update(offset=2), "lies outside"),
    "shape": (lambda i: weight(i).update(shape=[2**31 - 1, 64]), "is not a matrix"),
    "no shape": (lambda i: weight(i).update(shape=[]), "is not a matrix"),
    "long shape": (lambda i: weight(i).update(shape=[2**24, 2**24]), "its format and shape make"),
    "format": (lambda i: weight(i).update(format="f64"), "unknown weight format 'f64'"),
    "other format": (lambda i: weight(i).update(format="q4_k"), "its format and shape make"),
    "extent as text": (lambda i: weight(i).update(shape=["1", 2]), r"shape\[0\] is not a whole number"),
    "weight as list": (lambda i: i["weights"].update(embed=[]), "weights.embed is not an object"),
    "layers": (lambda i: i["kv"].update(num_layers=2**20), "at most 65536 layers"),
    "heads": (lambda i: i["kv"].update(num_kv_heads=0), "needs positive numbers"),
    "more layers": (lambda i: i["kv"].update(num_layers=3), "the program works on 2 layers, the KV cache has 3"),
    "other heads": (lambda i: i["kv"].update(num_kv_heads=1), "heads differ from the KV cache's"),
    "vocabulary": (lambda i: i["kv"].update(vocab_size=321), "the input has 320 logits, the vocabulary 321 tokens"),
}


@pytest.mark.parametrize(("change", "words"), INDEXES.values(), ids=INDEXES)
def test_malformed_indexes(artifact: Path, index: Any, program: Any, change: Change, words: str) -> None:  # S4
    changed = copy.deepcopy(index)
    change(changed)
    with pytest.raises(Malformed, match=words):
        opened(artifact, changed).add_program(program)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@st.composite
def mutated(draw: st.DrawFn, whole: Any) -> Any:
    """A JSON value with some of its parts replaced or left out."""
    value = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 2))):
        inner = value
        while True:
            names = sorted(inner) if isinstance(inner, dict) else range(len(inner))
            if not names:
                break
            name = draw(st.sampled_from(list(names)))
            if isinstance(inner[name], dict | list) and draw(st.integers(0, 5)):
                inner = inner[name]
                continue
            if isinstance(inner, dict) and not draw(st.integers(0, 3)):
                del inner[name]
            else:
                inner[name] = draw(VALUES)
            break
    return value


@pytest.mark.parametrize("file", ["index.json", "programs/mixed.json", "programs/decode.json"])
def test_whatever_an_artifact_holds_it_is_run_or_damaged(
    artifact: Path, config: Any, tmp_path: Path, file: str
) -> None:
    directory = tmp_path / "artifact"
    shutil.copytree(artifact, directory)

    @settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
    @given(mutated(json.loads((artifact / file).read_text())))
    def holds(content: Any) -> None:  # S4
        (directory / file).write_text(json.dumps(content))
        try:
            CpuDeviceModel.load(config, directory).shutdown()
        except DamagedArtifact as error:
            assert str(directory) in str(error)

    holds()
