"""The scripts of `benchmarks/`: their arithmetic, and each of them on a tiny model to its one line."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import benchmark_fronts
import benchmark_latency
import benchmark_serving
import benchmark_startup
import benchmark_throughput
import gguf
import numpy as np
import pytest
from engine_runs import BatchTimes, run_batch
from machine import Roofline
from model_files import ModelFiles, matrix_format, write_random_llama
from options import as_words

from vllm.checkpoint import open_checkpoint
from vllm.checkpoint.tokenizer import load_tokenizer

LIMITS = {"read_bytes": 1e9, "bf16_flops": 1e10, "int8_ops": 2e10}


def write_index(directory: Path, weights: dict[str, tuple[str, list[int], int]]) -> Path:
    entries = {name: {"format": f, "shape": shape, "num_bytes": n} for name, (f, shape, n) in weights.items()}
    (directory / "index.json").write_text(json.dumps({"weights": entries}))
    return directory


def test_roofline_of_tied_and_untied_models(tmp_path: Path) -> None:
    weights = {
        "embed": ("int8_group", [100, 10], 1100),
        "l.qkv": ("q4_min", [30, 10], 200),
        "norm": ("vector", [10], 40),
    }
    tied = Roofline.of_artifact(write_index(tmp_path, weights))
    assert (tied.weight_bytes, tied.products, tied.peak) == (1300, 1300, "int8_ops")
    untied = Roofline.of_artifact(write_index(tmp_path, {**weights, "lm_head": ("bf16", [100, 10], 2000)}))
    assert (untied.weight_bytes, untied.products, untied.peak) == (2200, 1300, "bf16_flops")


def test_roofline_is_memory_then_arithmetic() -> None:
    roofline = Roofline(weight_bytes=10**8, products=10**8, peak="int8_ops")
    assert roofline.tokens_per_second(1, LIMITS) == pytest.approx(10)  # 0.1 s of reading, 0.01 s of products
    assert roofline.tokens_per_second(10, LIMITS) == pytest.approx(100)  # both 0.1 s
    assert roofline.tokens_per_second(32, LIMITS) == pytest.approx(100)
    assert benchmark_latency.least_seconds(roofline, 2, 20, 11, LIMITS) == pytest.approx(40 / 100 + 2 * 10 / 20)


class FakeEngine:
    """Prefills one sequence a step, while the others decode."""

    def __init__(self, shortfall: int = 0) -> None:
        self.left: dict[str, int] = {}
        self.waiting: list[tuple[str, int]] = []
        self.shortfall = shortfall

    def add_request(self, request_id: str, prompt: dict[str, list[int]], params: Any) -> None:
        assert len(prompt["prompt_token_ids"]) == 7 and params.ignore_eos
        self.waiting.append((request_id, params.max_tokens - self.shortfall))

    def has_unfinished_requests(self) -> bool:
        return bool(self.waiting or self.left)

    def step(self) -> list[Any]:
        if self.waiting:
            name, count = self.waiting.pop(0)
            self.left[name] = count
        outputs = [SimpleNamespace(request_id=n, outputs=[SimpleNamespace(token_ids=[5])]) for n in self.left]
        self.left = {name: count - 1 for name, count in self.left.items() if count > 1}
        return outputs


def test_decode_is_what_is_left_after_the_last_prefill() -> None:
    times = run_batch(SimpleNamespace(llm_engine=FakeEngine()), 3, 7, 5, 0)
    assert times.decoded == 15 - 6 and times.prefill > 0 and times.decode > 0
    assert BatchTimes(1.0, 2.0, 30, 10, []).decode_rate == 15 and BatchTimes(1.0, 0.0, 0, 1, []).decode_rate == 0
    with pytest.raises(RuntimeError, match="asked for 5 tokens each"):
        run_batch(SimpleNamespace(llm_engine=FakeEngine(shortfall=1)), 2, 7, 5, 0)


def test_options_as_words() -> None:
    options = {"max_model_len": 5, "enable_prefix_caching": False, "x": True, "override_neuron_config": {"a": 1}}
    assert as_words(options) == [
        "--max-model-len=5", "--no-enable-prefix-caching", "--x", '--override-neuron-config={"a": 1}',
    ]  # fmt: skip


# The model in several forms.

SHAPE = {
    "block_count": 2, "context_length": 256, "embedding_length": 128, "feed_forward_length": 192,
    "attention.head_count": 4, "attention.head_count_kv": 2, "rope.dimension_count": 32,
}  # fmt: skip


@pytest.fixture(scope="module")
def random_llama(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    directory = tmp_path_factory.mktemp("random")
    write_random_llama(directory / "random.gguf", smollm2, SHAPE, 600)
    return ModelFiles(directory / "random.gguf", directory)


@pytest.mark.parametrize(("format", "error"), [("q4_0", 0.1), ("q4_1", 0.1), ("q8_0", 0.01), ("bf16", 0)])
def test_formats_hold_the_same_weights(random_llama: ModelFiles, format: str, error: float) -> None:
    path = random_llama.gguf(format)
    assert matrix_format(path) == format and (format == "bf16") == (path == random_llama.source)
    assert random_llama.gguf(format) == path
    source, derived = open_checkpoint(random_llama.source), open_checkpoint(path)
    assert {**source.config, "torch_dtype": None} == {**derived.config, "torch_dtype": None}
    assert sorted(source.tensors()) == sorted(derived.tensors())
    for name in source.tensors():
        values = source.get(name).float32()
        np.testing.assert_allclose(derived.get(name).float32(), values, atol=error * np.abs(values).max())
    embedding = derived.get("model.embed_tokens.weight").format
    assert embedding == ("q8_0" if format.startswith("q4") else format)
    fields = gguf.GGUFReader(path).fields
    assert fields["general.file_type"].contents() == gguf.LlamaFileType[f"MOSTLY_{format.upper()}"].value


def test_random_model_has_the_shape_and_a_tokenizer(random_llama: ModelFiles) -> None:
    checkpoint = open_checkpoint(random_llama.source)
    config = checkpoint.config
    assert (config["hidden_size"], config["num_key_value_heads"], config["vocab_size"]) == (128, 2, 600)
    assert checkpoint.get("model.layers.1.mlp.down_proj.weight").shape == (128, 192)
    tokenizer = load_tokenizer(checkpoint).backend
    ids = tokenizer.encode("the end", add_special_tokens=False).ids
    assert ids and max(ids) < 600 and tokenizer.decode(ids).strip() == "the end"


def test_fewer_layers_are_the_same_layers(random_llama: ModelFiles, tmp_path: Path) -> None:
    source = random_llama.huggingface()
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((source / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    fewer, whole = open_checkpoint(random_llama.layers(str(tmp_path), "bf16")), open_checkpoint(random_llama.source)
    assert fewer.config == {**whole.config, "num_hidden_layers": 1, "layer_types": ["full_attention"]}
    for name in fewer.tensors():
        assert np.array_equal(fewer.get(name).float32(), whole.get(name).float32()), name


def test_huggingface_form_is_the_same_model(random_llama: ModelFiles) -> None:
    source, exported = open_checkpoint(random_llama.source), open_checkpoint(random_llama.huggingface())
    assert sorted(source.tensors()) == sorted(exported.tensors())
    for name in source.tensors():
        assert np.array_equal(exported.get(name).float32(), source.get(name).float32())
    ours, theirs = (load_tokenizer(each).backend.encode("Once upon a time").ids for each in (source, exported))
    assert ours == theirs
    assert exported.config["num_hidden_layers"] == 2 and exported.config["rope_theta"] == source.config["rope_theta"]


# Each script.


def run_script(
    module: Any, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> dict[str, Any]:
    monkeypatch.setattr(module, "measure_limits", lambda: LIMITS)
    monkeypatch.setattr("sys.argv", [module.__file__, *words])
    module.main()
    line: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"cpu", "cores", "isa"} == line["hardware"].keys() and line["limits"] == LIMITS and line["commit"]
    return line


def test_throughput_script(
    random_llama: ModelFiles, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", str(random_llama.gguf("q4_1")), "--batches", "1", "3", "--repeats", "2"]
    words += ["--input-len", "8", "--output-len", "6", "--prefill-len", "32"]
    line = run_script(benchmark_throughput, words, monkeypatch, capsys)
    cases = [(result["case"], result["sequences"], result["tokens_a_step"]) for result in line["results"]]
    assert cases == [("decode", 1, 1), ("decode", 3, 3), ("prefill", 1, 32)]
    assert all(result["tokens_per_s"] > 0 and result["of_limit"] >= 0 for result in line["results"])
    assert all(result["undisturbed"] == result["repeats"] == 2 for result in line["results"])


def test_latency_script(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", str(tiny_llama), "--device", "null", "--batches", "2", "--repeats", "3"]
    (result,) = run_script(benchmark_latency, [*words, "--output-len", "4"], monkeypatch, capsys)["results"]
    assert result["sequences"] == 2 and 0 < result["best_s"] <= result["median_s"] <= result["worst_s"]


def test_serving_script(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", str(tiny_llama), "--device", "null", "--streams", "1", "4", "--rounds", "2"]
    line = run_script(benchmark_serving, [*words, "--input-len", "12", "--output-len", "5"], monkeypatch, capsys)
    assert [result["completed"] for result in line["results"]] == [2, 8]
    assert [result["total_output_tokens"] for result in line["results"]] == [10, 40]
    assert [result["total_input_tokens"] for result in line["results"]] == [24, 96]


def test_fronts_script(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", str(tiny_llama), "--fronts", "2", "--streams", "4", "--rounds", "2"]
    line = run_script(benchmark_fronts, [*words, "--input-len", "12", "--output-len", "5"], monkeypatch, capsys)
    (result,) = line["results"]
    assert (result["fronts"], result["completed"]) == (2, 8) and result["front"] > result["owner"] >= 0


def test_startup_script(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", str(tiny_llama), "--device", "null", "--cold", "1", "--warm", "1"]
    median = run_script(benchmark_startup, words, monkeypatch, capsys)["median_s"]
    assert median["cold_compilation_times"] > 0 == median["warm_compilation_times"]
    assert median["warm_startup_times"] > median["warm_import_times"] > 0


def test_a_server_that_does_not_come_up_says_why() -> None:
    with (
        pytest.raises(RuntimeError, match="no such option"),
        benchmark_serving.running(["sh", "-c", "echo no such option; exit 3"], 9),
    ):
        raise AssertionError("it is up")
