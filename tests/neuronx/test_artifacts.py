"""Compiling, keeping and opening artifacts on the stand-in."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil

import pytest

from tests.neuron.driver import Driver, load, resolved_config
from tests.neuron.test_target_contract import _alone, _prompt
from tests.tiny import make_checkpoint
from vllm import LLM, SamplingParams
from vllm.artifacts.find import artifact_key, diff_keys, open_or_compile
from vllm.artifacts.manifest import ArtifactError
from vllm.targets.neuronx.compiling import CompilationFailed, scratch_directory
from vllm.targets.neuronx.model import NeuronxDeviceModel


def _silent(what, share):
    """No progress."""


@pytest.fixture
def config(newest, tiny_llama):
    return resolved_config(tiny_llama, "neuronx")


def _override(config, **entries):
    options = dataclasses.replace(config.neuron_options, override_neuron_config=entries)
    from vllm.settings.resolve import resolve

    return resolve(config.replace(neuron_options=options))


def _compile(config, directory):
    directory.mkdir()
    NeuronxDeviceModel.compile(config, directory, _silent)
    return directory


def _files(directory):
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def test_what_an_artifact_holds(config, tmp_path):
    assert _files(_compile(config, tmp_path / "a")) == [
        "model.pt",
        "neuron_config.json",
        "weights/tp0_sharded_checkpoint.safetensors",
    ]


def test_a_shard_for_each_core(config, tmp_path):
    two = _override(config, tp_degree=2)
    assert len(list(_compile(two, tmp_path / "a").glob("weights/tp*"))) == 2
    device = NeuronxDeviceModel.load(two, tmp_path / "a")
    one = load(config, tmp_path / "b")
    assert _alone((two, device), _prompt(1, 9), 5) == _alone((config, one), _prompt(1, 9), 5)


def test_a_portable_artifact_needs_no_checkpoint(newest, tmp_path):
    checkpoint = make_checkpoint(tmp_path / "model")
    config = resolved_config(checkpoint, "neuronx")
    device = load(config, tmp_path / "a")
    expected = _alone((config, device), _prompt(2, 9), 5)
    (tmp_path / "a").rename(tmp_path / "moved")
    (checkpoint / "model.safetensors").unlink()
    assert _alone((config, NeuronxDeviceModel.load(config, tmp_path / "moved")), _prompt(2, 9), 5) == expected


def test_without_shards_the_checkpoint_is_read_from_where_it_lies_now(newest, tmp_path):
    checkpoint = make_checkpoint(tmp_path / "model")
    config = _override(resolved_config(checkpoint, "neuronx"), save_sharded_checkpoint=False)
    directory = _compile(config, tmp_path / "a")
    assert not (directory / "weights").exists()
    checkpoint.rename(tmp_path / "moved")
    with pytest.raises(ArtifactError, match="cannot be loaded"):
        NeuronxDeviceModel.load(config, directory)
    model = dataclasses.replace(config.model_config, model_path=str(tmp_path / "moved"))
    assert NeuronxDeviceModel.load(config.replace(model_config=model), directory)


def test_tied_weights(newest, tmp_path):
    config = resolved_config(make_checkpoint(tmp_path / "model", tie_word_embeddings=True), "neuronx")
    device = load(config, tmp_path / "a")
    on_cpu = resolved_config(tmp_path / "model", "cpu")
    cpu = load(on_cpu, tmp_path / "cpu")
    assert _alone((config, device), _prompt(3, 9), 8) == _alone((on_cpu, cpu), _prompt(3, 9), 8)


@pytest.mark.parametrize("tied", [False, True])
def test_a_hub_id_is_downloaded_once_and_never_held_whole(newest, tied, tmp_path, monkeypatch):
    """The library gets the snapshot's directory. Nothing makes transformers' model of it, or writes it anew."""
    import transformers

    snapshot = make_checkpoint(tmp_path / "snapshot", tie_word_embeddings=tied)
    before = {path: path.stat().st_mtime_ns for path in snapshot.iterdir()}
    calls = []

    def download(name, revision, **options):
        calls.append((name, revision))
        return str(snapshot)

    def refuse(*args, **kwargs):
        raise AssertionError("the model was made whole in host memory")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    for auto in (transformers.AutoModelForCausalLM, transformers.AutoModel):
        monkeypatch.setattr(auto, "from_pretrained", refuse)
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    monkeypatch.setenv("NEURON_COMPILED_ARTIFACTS", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    options = {"max_model_len": 64, "max_num_seqs": 2, "dtype": "float32"}
    device = LLM(model="owner/model", revision="abc", device="neuronx", **options)
    assert calls == [("owner/model", "abc")]
    assert {path.name for path in tmp_path.iterdir()} - {"cache"} == {"site", "snapshot", "store"}
    assert {path: path.stat().st_mtime_ns for path in snapshot.iterdir()} == before
    cpu = LLM(model=str(snapshot), device="cpu", **options)
    greedy = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    texts = [llm.generate("once", greedy, use_tqdm=False)[0].outputs[0].text for llm in (device, cpu)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "mistral"])
def test_relatives_of_llama(newest, family, tmp_path):
    checkpoint = make_checkpoint(tmp_path / "model", family)
    config, on_cpu = resolved_config(checkpoint, "neuronx"), resolved_config(checkpoint, "cpu")
    device, cpu = load(config, tmp_path / "a"), load(on_cpu, tmp_path / "cpu")
    assert _alone((config, device), _prompt(3, 9), 8) == _alone((on_cpu, cpu), _prompt(3, 9), 8)


def test_values_without_effect_are_no_part_of_the_key(config, tiny_llama):  # N19
    def key(config, **entries):
        return artifact_key(_override(config, **entries), NeuronxDeviceModel)["neuron_config"]

    plain = key(config)
    idle = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 5}
    assert key(config, on_device_sampling_config=idle) == plain
    assert key(config, on_device_sampling_config={"deterministic": True}) != plain
    assert key(config, cc_pipeline_tiling_factor=1) != plain
    on_cpu = resolved_config(tiny_llama, "cpu")
    assert key(on_cpu, cc_pipeline_tiling_factor=1, fused_qkv=True) == key(on_cpu)


def test_a_failed_compilation_is_tried_once_more(config, tmp_path, monkeypatch):
    monkeypatch.setenv("STANDIN_COMPILER_FAILURES", "1")
    assert "model.pt" in _files(_compile(config, tmp_path / "a"))


def test_the_first_error_of_the_compiler_is_shown(config, tmp_path, monkeypatch):
    monkeypatch.setenv("STANDIN_COMPILER_FAILURES", "2")
    with pytest.raises(CompilationFailed, match="failure number 2: out of SBUF") as caught:
        _compile(config, tmp_path / "a")
    assert "consequence" not in str(caught.value) and "failure number 1" not in str(caught.value)


def _progress_of(config, directory):
    said = []
    directory.mkdir()
    NeuronxDeviceModel.compile(config, directory, lambda what, share: said.append((what, share)))
    return said


def test_progress_is_told_program_by_program(library, tiny_llama, tmp_path, monkeypatch):
    override = {"context_encoding_buckets": [16, 32, 64], "token_generation_buckets": [32, 64]}
    config = resolved_config(tiny_llama, "neuronx", override=override)
    said = _progress_of(config, tmp_path / "a")
    models = [("context_encoding_model", 3), ("token_generation_model", 2)]
    programs = [f"neuronx-cc: {model}, bucket {rank + 1}" for model, count in models for rank in range(count)]
    assert [what for what, _ in said] == ["neuronx-cc", *programs, "compiled"]
    assert [share for _, share in said] == pytest.approx([0.0, *(0.95 * done / 5 for done in range(1, 6)), 1.0])
    monkeypatch.setenv("STANDIN_COMPILER_FAILURES", "1")
    again = _progress_of(config, tmp_path / "b")
    assert [what for what, _ in again[:2]] == ["neuronx-cc", "neuronx-cc, attempt 2"] and len(again) == 2 + 5 + 1


def test_progress_counts_the_vision_encoder(newest, llama4, tmp_path):
    override = {"vision_neuron_config": {"buckets": [2, 6]}}
    said = _progress_of(resolved_config(llama4, "neuronx", max_model_len=96, override=override), tmp_path / "a")
    assert said[-2] == ("neuronx-cc: vision_encoder_model, bucket 2", pytest.approx(0.95))


def test_a_directory_that_is_not_empty_is_left_alone(config, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine.txt").write_text("mine")
    with pytest.raises(CompilationFailed, match="not empty"):
        NeuronxDeviceModel.compile(config, tmp_path / "a", _silent)
    assert (tmp_path / "a" / "mine.txt").read_text() == "mine"


def test_scratch_directories_are_private_and_go_away(tmp_path, monkeypatch):
    monkeypatch.setenv("BASE_COMPILE_WORK_DIR", str(tmp_path))
    with scratch_directory() as first:
        assert os.environ["BASE_COMPILE_WORK_DIR"] == f"{first}/"
        with scratch_directory() as second:
            assert second != first
    assert os.environ["BASE_COMPILE_WORK_DIR"] == str(tmp_path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.delenv("BASE_COMPILE_WORK_DIR")
    with scratch_directory():
        pass
    assert "BASE_COMPILE_WORK_DIR" not in os.environ


def test_compiling_leaves_no_scratch_behind(config, tmp_path, monkeypatch):
    monkeypatch.setenv("BASE_COMPILE_WORK_DIR", str(tmp_path / "scratch"))
    _compile(config, tmp_path / "a")
    assert list((tmp_path / "scratch").iterdir()) == []


def test_an_artifact_of_another_configuration_is_refused(config, tmp_path):
    directory = _compile(config, tmp_path / "a")
    with pytest.raises(ArtifactError, match="batch_size: 4 in the artifact, 8 needed"):
        NeuronxDeviceModel.load(
            _override(config.replace(scheduler_config=type(config.scheduler_config)(max_num_seqs=8))), directory
        )
    host = _override(config, on_device_sampling_config=None)
    with pytest.raises(ArtifactError, match="on_device_sampling_config"):
        NeuronxDeviceModel.load(host, directory)


@pytest.mark.parametrize("damage", ["model.pt", "neuron_config.json"])
def test_damage_is_an_error_and_nothing_is_written(config, tmp_path, damage):
    directory = _compile(config, tmp_path / "a")
    (directory / damage).write_bytes(b"{")
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    with pytest.raises(ArtifactError):
        NeuronxDeviceModel.load(config, directory)
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before


def test_the_second_start_compiles_nothing(newest, tmp_path):
    config = resolved_config(make_checkpoint(tmp_path / "model"), "neuronx")
    first = open_or_compile(config, NeuronxDeviceModel, _silent)
    second = open_or_compile(config, NeuronxDeviceModel, _silent)
    assert (first.hit, second.hit) == (False, True) and first.directory == second.directory
    assert json.loads((first.directory / "manifest.json").read_text())["key"]["compiler"]["portable"]


def test_the_key_names_versions_and_no_paths(newest, tmp_path):
    checkpoint = make_checkpoint(tmp_path / "model")
    shutil.copytree(checkpoint, tmp_path / "copy")
    one, other = (resolved_config(path, "neuronx") for path in (checkpoint, tmp_path / "copy"))
    key = artifact_key(one, NeuronxDeviceModel)
    assert diff_keys(key, artifact_key(other, NeuronxDeviceModel)) == []
    assert key["compiler"]["compiler"]["neuronx-distributed-inference"] == newest


def test_flags_of_the_compiler_are_part_of_the_key(config, monkeypatch):
    before = artifact_key(config, NeuronxDeviceModel)
    monkeypatch.setenv("NEURON_CC_FLAGS", "--model-type=transformer")
    assert len(diff_keys(before, artifact_key(config, NeuronxDeviceModel))) == 1


def test_a_quantised_checkpoint_is_read_and_not_written(newest, tiny_llama, tmp_path):
    quantised = shutil.copytree(tiny_llama, tmp_path / "quantised")
    before = {path.name: path.stat().st_mtime_ns for path in quantised.iterdir()}
    entries = {"quantized": True, "quantized_checkpoints_path": str(quantised)}
    _compile(_override(resolved_config(tiny_llama, "neuronx"), **entries), tmp_path / "a")
    assert {path.name: path.stat().st_mtime_ns for path in quantised.iterdir()} == before


def test_both_kinds_of_sampling_from_one_checkpoint(config, tmp_path):
    host = _override(config, on_device_sampling_config=None)
    first, second = load(config, tmp_path / "device"), load(host, tmp_path / "host")
    for driver in (Driver(config, first), Driver(host, second)):
        driver.add("r", _prompt(4, 7), [0])
        assert driver.generate("r", 4) == _alone((config, first), _prompt(4, 7), 4)[0]
