"""`vllm neuron plan` against arithmetic written out here, and against the parameter counts of the published models."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from tests.cli.neuron import CONFIGS, plan
from tests.tiny import make_checkpoint
from vllm.entrypoints.cli.main import main
from vllm.entrypoints.cli.neuron import output

GIB = 2**30
PUBLISHED = {
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-4-scout": 108_641_793_536,
    "qwen3-8b": 8_190_735_360,
    "qwen3-30b-a3b": 30_532_122_624,
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_parameters_are_those_of_the_published_model(capsys, model):
    _, found = plan(capsys, model, "--max-model-len", "2048")
    assert found["faults"] == []
    assert found["model"]["parameters"] == PUBLISHED[model]
    assert found["model"]["checkpoint_bytes"] == 2 * PUBLISHED[model]
    assert found["model"]["sizes_from"] == "config.json"


def test_llama_8b_on_eight_cores(capsys):
    """tp 8 divides 32 query heads, 8 KV heads, 14336 and 128256: everything is split evenly, norms are copied."""
    words = ("--instance", "trn1.32xlarge", "-tp", "8", "--max-model-len", "4096", "--max-num-seqs", "16")
    status, found = plan(capsys, "llama-3.1-8b", *words)
    memory = found["memory_per_core"]
    assert status == 0
    assert memory["weights"] == {
        "embedding": 128256 * 4096 // 8 * 2,
        "attention": 32 * (4096 * 4096 + 2 * 1024 * 4096 + 4096 * 4096) // 8 * 2,
        "mlp": 32 * 3 * 4096 * 14336 // 8 * 2,
        "norms": (2 * 32 + 1) * 4096 * 2,
        "lm_head": 128256 * 4096 // 8 * 2,
    }
    assert memory["kv_cache"] == 2 * 32 * (16 * 4096) * 1 * 128 * 2
    tokens, width = 4096, 2 * (4096 + 4 * 128 + 1 * 128 + 14336 // 8)
    assert memory["scratch_estimate"] == tokens * width * 2
    assert memory["total"] == memory["weights_total"] + memory["kv_cache"] + memory["scratch_estimate"]
    assert memory["budget"] == int(16 * GIB * 0.92)
    assert found["kv_cache"]["tokens"] == 16 * 4096
    assert found["host"]["load_estimate"] == 8 * memory["weights_total"] + 4 * GIB
    assert found["host"]["compile_estimate"] == found["host"]["load_estimate"] + 2 * PUBLISHED["llama-3.1-8b"]


def test_llama_70b_replicates_kv_heads_on_64_cores(capsys):
    """8 KV heads on 64 logical cores of trn2: each on 8 cores, so that k and v are held 8 times."""
    words = ("--instance", "trn2.48xlarge", "-tp", "64", "--max-model-len", "8192", "--max-num-seqs", "32")
    status, found = plan(capsys, "llama-3.1-70b", *words)
    memory, parallel = found["memory_per_core"], found["parallel"]
    assert status == 0
    assert (parallel["strategy"], parallel["sharded_kv_heads"], parallel["kv_heads_per_core"]) == ("replicate", 64, 1)
    q_and_o, k_and_v = 2 * 8192 * 128, 2 * 8192 * 128
    assert memory["weights"]["attention"] == 80 * (q_and_o + k_and_v) * 2
    assert memory["weights"]["mlp"] == 80 * 3 * 8192 * 28672 // 64 * 2
    # Logical cores of two: the head is padded to an even share, and a bias masks what was padded.
    assert memory["weights"]["lm_head"] == (128256 // 64) * 8192 * 2 + (128256 // 64) * 2
    assert memory["kv_cache"] == 2 * 80 * 32 * 8192 * 128 * 2
    assert found["instance"]["logical_cores"] == 64
    assert found["instance"]["hbm_bytes_per_core"] == 24 * GIB
    assert parallel["valid_degrees"] == [1, 2, 4, 8, 16, 32, 64]


def test_scout_pads_forty_heads_and_splits_sixteen_experts(capsys):
    _, found = plan(capsys, "llama-4-scout", "--instance", "trn2.48xlarge", "-tp", "64", "--max-model-len", "8192")
    memory, parallel = found["memory_per_core"], found["parallel"]
    assert (parallel["query_heads"], parallel["padded_query_heads"], parallel["kv_heads_per_core"]) == (40, 64, 1)
    expert = 3 * 5120 * 8192
    assert memory["weights"]["experts"] == 48 * 16 * expert // 64 * 2
    assert memory["weights"]["mlp"] == 48 * expert // 64 * 2  # the shared expert
    assert memory["weights"]["router"] == 48 * 16 * 5120 * 2
    assert memory["weights"]["attention"] == 48 * 4 * 5120 * 128 * 2
    assert 0 < memory["weights"]["vision"] < memory["weights"]["mlp"]


def test_logical_cores_of_one_physical_core_have_half_the_memory(capsys):
    words = ("--instance", "trn2.48xlarge", "-tp", "8", "--max-model-len", "1024")
    budgets = []
    for cores in (2, 1):
        override = json.dumps({"logical_nc_config": cores})
        _, found = plan(capsys, "llama-3.1-8b", *words, "--override-neuron-config", override)
        budgets.append(found["memory_per_core"]["budget"])
        assert found["instance"]["logical_cores"] == 128 // cores
    assert budgets[0] == pytest.approx(2 * budgets[1], abs=2)


def test_qwen3_8b(capsys):
    _, found = plan(capsys, "qwen3-8b", "-tp", "16", "--max-model-len", "1024", "--max-num-seqs", "4")
    memory = found["memory_per_core"]
    # 2 query heads and, each of 8 on two cores, 1 KV head of 128.
    assert memory["weights"]["attention"] == 36 * (2 * 4096 * 256 + 2 * 4096 * 128) * 2
    assert memory["weights"]["norms"] == (36 * (2 * 4096 + 2 * 128) + 4096) * 2
    assert memory["kv_cache"] == 2 * 36 * 4 * 1024 * 128 * 2
    tokens, width = 1024, 2 * (4096 + 3 * 128 + 12288 // 16)
    assert memory["scratch_estimate"] == tokens * width * 2 + 2 * 1024 * 1024 * 4


def test_qwen3_30b_counts_all_experts_but_computes_eight(capsys):
    _, found = plan(capsys, "qwen3-30b-a3b", "-tp", "8", "--max-model-len", "4096", "--max-num-seqs", "8")
    memory = found["memory_per_core"]
    assert memory["weights"]["experts"] == 48 * 128 * 3 * 2048 * 768 // 8 * 2
    assert memory["weights"]["router"] == 48 * 128 * 2048 * 2
    assert "mlp" not in memory["weights"]
    assert memory["scratch_estimate"] == 4096 * 2 * (2048 + 4 * 128 + 128 + 8 * 768 // 8) * 2
    assert found["model"]["support"] == {
        "neuronx": {"key": "qwen3_moe", "since": "0.6", "sdk": "2.26"},
        "cpu": False,
    }


def test_the_head_of_tied_embeddings_is_held_beside_them(capsys, tmp_path):
    config = json.loads((CONFIGS / "qwen3-8b" / "config.json").read_text()) | {"tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    _, found = plan(capsys, tmp_path, "-tp", "8", "--max-model-len", "1024")
    assert found["model"]["parameters"] == PUBLISHED["qwen3-8b"] - 151936 * 4096
    assert found["memory_per_core"]["weights"]["lm_head"] == 151936 * 4096 // 8 * 2


def test_quantised_weights_are_a_byte_and_a_scale_a_row(capsys):
    override = {
        "quantized": True,
        "quantized_checkpoints_path": "/somewhere",
        "quantization_type": "per_channel_symmetric",
        "modules_to_not_convert": ["lm_head"],
    }
    words = ("-tp", "8", "--max-model-len", "1024", "--override-neuron-config", json.dumps(override))
    _, found = plan(capsys, "llama-3.1-8b", *words)
    weights = found["memory_per_core"]["weights"]
    gate, down = 14336 // 8, 4096
    assert weights["mlp"] == 32 * (3 * 4096 * gate + 4 * (2 * gate + down))
    assert weights["lm_head"] == 128256 * 4096 // 8 * 2
    assert weights["embedding"] == 128256 * 4096 // 8 * 2


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_headers_and_config_agree(capsys, tmp_path, family):
    """The same model from its config.json alone and with its weights beside it."""
    checkpoint = make_checkpoint(tmp_path / family, family, dtype="float32")
    _, with_headers = plan(capsys, checkpoint, "-tp", "8")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text((checkpoint / "config.json").read_text())
    _, bare = plan(capsys, tmp_path / "bare", "-tp", "8")
    assert with_headers["model"]["sizes_from"] == "safetensors headers"
    assert with_headers["model"]["parameters"] == bare["model"]["parameters"]
    assert with_headers["memory_per_core"] == bare["memory_per_core"]
    assert not [notice for notice in with_headers["notices"] if "headers" in notice]


def test_programs_and_artifact(capsys):
    override = {"context_encoding_buckets": [256, 1000]}
    words = ("-tp", "2", "--max-model-len", "1000", "--override-neuron-config", json.dumps(override))
    _, found = plan(capsys, "llama-3.1-8b", *words)
    shapes = [(each["kind"], each["batch"], each["tokens"], each["context"]) for each in found["programs"]]
    assert shapes == [
        ("context_encoding", 1, 256, 0),
        ("context_encoding", 1, 1000, 0),
        *(("token_generation", 32, 1, length) for length in (128, 256, 512, 1000)),
    ]
    artifact = found["artifact"]
    assert (artifact["programs"], artifact["layers"], artifact["layer_programs"]) == (6, 32, 192)
    shards = artifact["files"][-1]
    assert shards["path"].startswith("weights/tp{0..1}_sharded_checkpoint.safetensors")
    assert shards["bytes"] == 2 * found["memory_per_core"]["weights_total"]


def test_limits_are_the_largest_that_fit(capsys):
    words = ("--instance", "inf2.8xlarge", "-tp", "2", "--max-model-len", "2048", "--max-num-seqs")
    _, found = plan(capsys, "llama-3.1-8b", *words, "4")
    most = found["limits"]["max_num_seqs"]
    assert plan(capsys, "llama-3.1-8b", *words, str(most))[0] == 0
    assert plan(capsys, "llama-3.1-8b", *words, str(most + 1))[0] == 1
    longest = found["limits"]["max_model_len"]
    words = ("--instance", "inf2.8xlarge", "-tp", "2", "--max-num-seqs", "4", "--max-model-len")
    assert plan(capsys, "llama-3.1-8b", *words, str(longest))[0] == 0
    assert plan(capsys, "llama-3.1-8b", *words, str(longest + 1))[0] == 1


def test_prefix_caching_is_a_grid_of_programs_and_blocks_with_a_sink(capsys):
    """Blocks of 32: 4 sequences of 1024 tokens take 128, a quarter more is for prefixes, and one is the sink."""
    words = ("-tp", "8", "--max-model-len", "1024", "--max-num-seqs", "4", "--enable-prefix-caching")
    _, found = plan(capsys, "llama-3.1-8b", *words)
    pairs = [(each["tokens"], each["context"]) for each in found["programs"] if each["kind"] == "context_encoding"]
    assert pairs == [(512, 0), (512, 512), (512, 1024), (1024, 0), (1024, 512), (1024, 1024)]
    assert (found["kv_cache"]["lines"], found["kv_cache"]["tokens_per_line"]) == (128 + 32 + 1, 32)
    assert found["memory_per_core"]["kv_cache"] == 2 * 32 * (161 * 32) * 128 * 2


def test_all_faults_at_once(capsys):
    words = (
        *("--instance", "inf2.48xlarge", "-tp", "32", "--max-model-len", "200000", "--nxdi-version", "0.7.0"),
        *("--override-neuron-config", '{"context_encoding_buckts": [1], "token_generation_batches": [4]}'),
    )
    status, found = plan(capsys, "llama-3.1-8b", *words)
    faults = {fault["name"]: fault for fault in found["faults"]}
    assert status == 1 and not found["ok"]
    assert set(faults) == {
        "max_model_len",
        "context_encoding_buckts",
        "token_generation_batches",
        "tensor_parallel_size",
        "device memory",
    }
    assert "'context_encoding_buckets'" in faults["context_encoding_buckts"]["fix"]
    assert "1, 2, 4, 8, 24" in faults["tensor_parallel_size"]["why"]
    assert "0.8" in faults["token_generation_batches"]["why"]


def test_an_override_that_is_a_text(capsys):  # N4
    words = ("-tp", "8", "--max-num-seqs", "4", "--max-model-len", "2048")
    text = json.dumps({"override_neuron_config": json.dumps({"enable_bucketing": False})})
    for more in ((), ("--instance", "trn1.32xlarge")):
        status, found = plan(capsys, "llama-3.1-8b", *words, *more, "--additional-config", text)
        assert status == 0 and len(found["programs"]) == 2


def test_keys_of_all_stages_at_once(capsys):  # N8, N17
    words = ("--instance", "trn2.48xlarge", "-tp", "64", "--max-num-seqs", "1", "--max-model-len", "16384")
    keys = {"foo_bar": 1, "is_medusa": True, "async_mode": True}
    override = json.dumps({"override_neuron_config": keys})
    status, found = plan(capsys, "llama-3.1-70b", *words, "--additional-config", override)
    assert status == 1 and {fault["name"] for fault in found["faults"]} == {"foo_bar", "is_medusa"}
    assert any("async_mode=True has no effect" in notice for notice in found["notices"])
    alone = json.dumps({"override_neuron_config": {"async_mode": True}})
    assert plan(capsys, "llama-3.1-70b", *words, "--additional-config", alone)[0] == 0


def test_what_the_fix_of_a_memory_fault_says_does_fix_it(capsys):
    words = ("--instance", "trn1.32xlarge", "-tp", "2", "--max-num-seqs", "32", "--max-model-len", "8192")
    _, found = plan(capsys, "llama-3.1-8b", *words)
    (fault,) = found["faults"]
    assert fault["name"] == "device memory"
    fixes = [fix.removeprefix("or ").split("=") for fix in fault["fix"].removeprefix("Use ").split(", ")]
    assert len(fixes) == 3
    for name, value in fixes:
        flag = f"--{name.replace('_', '-')}"
        fixed = [*words, flag, value] if flag != "--tensor-parallel-size" else [*words, "-tp", value]
        assert plan(capsys, "llama-3.1-8b", *fixed)[0] == 0


def test_the_host_of_a_small_instance_is_too_small(capsys):
    """A checkpoint of 15 GiB sharded in 32 GiB of host memory is known to be killed without a word."""
    words = ("--instance", "trn1.2xlarge", "-tp", "2", "--max-model-len", "2048", "--max-num-seqs", "4")
    _, found = plan(capsys, "llama-3.1-8b", *words)
    (fault,) = found["faults"]
    assert fault["name"] == "host memory"
    assert "trn1.32xlarge" in fault["fix"] and "vllm neuron compile" in fault["fix"]


@pytest.mark.parametrize("version, ok", [("0.5.0", False), ("0.6.0", True), ("0.9.0", True)])
def test_architectures_by_version(capsys, version, ok):
    status, found = plan(capsys, "qwen3-30b-a3b", "--max-model-len", "1024", "--nxdi-version", version)
    assert (status == 0) == ok
    assert [fault["name"] for fault in found["faults"]] == ([] if ok else ["architectures"])


def test_a_model_that_only_the_accelerator_runs(capsys):
    status, found = plan(capsys, "qwen3-30b-a3b", "--device", "cpu", "--max-model-len", "128", "--max-num-seqs", "1")
    assert status == 1
    assert "architectures" in [fault["name"] for fault in found["faults"]]


def test_attention_in_chunks_excludes_kernels(capsys):
    override = '{"flash_decoding_enabled": true}'
    words = ("--max-model-len", "16384", "--override-neuron-config", override)
    _, found = plan(capsys, "llama-4-scout", *words)
    assert "flash_decoding_enabled" in [fault["name"] for fault in found["faults"]]


def test_sequence_parallel_lengths(capsys):
    override = '{"sequence_parallel_enabled": true}'
    words = ("-tp", "32", "--max-model-len", "6024", "--override-neuron-config", override)
    _, found = plan(capsys, "llama-3.1-8b", *words)
    assert "sequence_parallel_enabled" in [fault["name"] for fault in found["faults"]]


def test_an_incomplete_config(capsys, tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 64}')
    status, found = plan(capsys, tmp_path, "--max-model-len", "128")
    assert status == 1
    (fault,) = [fault for fault in found["faults"] if fault["name"] == "config.json"]
    assert "num_hidden_layers" in fault["why"] and "vocab_size" in fault["why"]
    assert found["memory_per_core"] is None


def test_suggestion(capsys):
    status, found = plan(capsys, "llama-3.1-70b", "--instance", "trn2.48xlarge", "--suggest")
    suggestion = found["suggestion"]
    assert status == 0
    assert (suggestion["max_num_seqs"], suggestion["max_model_len"]) == (32, 8192)
    rows = {option["degree"]: option["rows"] for option in suggestion["options"]}
    assert list(rows) == [1, 2, 4, 8, 16, 32, 64]
    assert suggestion["tensor_parallel_size"] == min(degree for degree, most in rows.items() if most >= 32)
    assert rows[suggestion["tensor_parallel_size"]] >= 32 > rows[suggestion["tensor_parallel_size"] // 2]
    assert found["parallel"]["tensor_parallel_size"] == suggestion["tensor_parallel_size"]
    assert suggestion["buckets"]["token_generation_buckets"][-1] == 8192
    model = str(CONFIGS / "llama-3.1-70b")
    assert main(["neuron", "plan", "--model", model, "--instance", "trn2.48xlarge", "--suggest"]) == 0
    printed = capsys.readouterr().out
    assert f"\n  {suggestion['flags']}\n" in printed
    for key, ladder in suggestion["buckets"].items():
        assert f"  {key}, as they follow from that: {ladder}\n" in printed


def test_wrong_command_lines(capsys):
    assert main(["neuron"]) == 2
    assert main(["neuron", "plam"]) == 2
    assert "did you mean 'plan'" in capsys.readouterr().err
    for words in (["--instnce", "x"], ["--num-buckets", "3"]):
        with pytest.raises(SystemExit) as caught:
            main(["neuron", "plan", *words])
        assert caught.value.code == 2
    assert main(["neuron", "plan", "--model", str(CONFIGS / "qwen3-8b"), "--instance", "trn1.32xlrge"]) == 1
    assert "trn1.32xlarge" in capsys.readouterr().err
    assert main(["neuron", "plan", "--model", "./nowhere/at-all"]) == 1


def test_plain_when_piped_and_light():
    """No box drawing and no colours in a pipe; neither torch nor transformers is imported."""
    code = (
        "import sys; from vllm.entrypoints.cli.main import main; "
        f"status = main(['neuron', 'plan', '--model', {str(CONFIGS / 'llama-3.1-8b')!r}, '--max-model-len', '2048']); "
        "print([name for name in ('torch', 'transformers', 'rich') if name in sys.modules]); sys.exit(status)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.isascii()
    assert "\x1b" not in result.stdout
    assert result.stdout.rstrip().endswith("[]")
    assert "8,030,261,248" in result.stdout


def test_readable_in_a_terminal(capsys, monkeypatch):
    """Tables as wide as the terminal at most; every figure and every fault of the plain form."""
    words = ["neuron", "plan", "--model", str(CONFIGS / "qwen3-8b"), "-tp", "7", "--instance", "inf2.xlarge"]
    words += ["--max-model-len", "99999", "--max-num-seqs", "0"]
    assert main(words) == 1
    plain = capsys.readouterr().out
    monkeypatch.setattr(output, "is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    assert main(words) == 1
    drawn = capsys.readouterr().out
    assert max(map(len, drawn.splitlines())) <= 100 and "┃" in drawn
    assert set(re.findall(r"\d[\d,.]*\d", plain)) == set(re.findall(r"\d[\d,.]*\d", drawn))
    assert re.findall(r"^  - \S+", plain, re.MULTILINE) == re.findall(r"^  - \S+", drawn, re.MULTILINE)
    assert "\n  - max_model_len=99999: more than the 40960 tokens that the model was made for" in plain


def test_a_draft_and_the_longer_cache_it_needs_are_counted(capsys):
    """8B drafts for 70B: its weights, its KV cache, and 5 positions more for both, up to a multiple of 128."""
    shape = ("--instance", "trn2.48xlarge", "-tp", "64", "--max-model-len", "8192", "--max-num-seqs", "32")
    speculation = json.dumps({"model": str(CONFIGS / "llama-3.1-8b"), "num_speculative_tokens": 4})
    status, found = plan(capsys, "llama-3.1-70b", *shape, "--speculative-config", speculation)
    _, alone = plan(capsys, "llama-3.1-70b", *shape)
    _, draft = plan(capsys, "llama-3.1-8b", *shape)
    memory = found["memory_per_core"]
    assert status == 0 and not any("not counted" in notice for notice in found["notices"])
    assert memory["weights"]["draft"] == draft["memory_per_core"]["weights_total"]
    assert memory["weights_total"] == alone["memory_per_core"]["weights_total"] + memory["weights"]["draft"]
    assert memory["kv_cache"] == 2 * (80 + 32) * 32 * 8320 * 128 * 2
    assert found["limits"]["max_num_seqs"] < alone["limits"]["max_num_seqs"]


def test_adapters_are_counted(capsys, tmp_path):
    """q and v of rank 16 in a slot for the adapter, one of zeros and one for each of 16 rows; B is split, A is not."""
    (tmp_path / "adapter_config.json").write_text('{"r": 16, "target_modules": ["q_proj", "v_proj"]}')
    shape = ("--instance", "trn1.32xlarge", "-tp", "8", "--max-model-len", "4096", "--max-num-seqs", "16")
    _, found = plan(capsys, "llama-3.1-8b", *shape, "--enable-lora", "--lora-modules", f"poet={tmp_path}")
    slot = 32 * 16 * ((4096 + 4096 // 8) + (4096 + 1024 // 8)) * 2
    assert found["memory_per_core"]["weights"]["adapters"] == (1 + 1 + 16) * slot


def test_the_image_encoder_has_programs_files_and_a_degree_of_its_own(capsys):
    """Its 16 heads are split over 16 of 64 cores; each of the four groups holds all of it."""
    _, found = plan(capsys, "llama-4-scout", "--instance", "trn2.48xlarge", "-tp", "64", "--max-model-len", "16384")
    encoders = [program for program in found["programs"] if program["kind"] == "vision_encoder"]
    assert [(program["batch"], program["tokens"]) for program in encoders] == [(8, 144), (28, 144), (88, 144)]
    paths = {entry["path"].split("/")[0] for entry in found["artifact"]["files"]}
    assert {"text_model", "vision_model", "neuron_config.json"} <= paths
    narrow = '{"vision_neuron_config": {"tp_degree": 8}}'
    words = ("--instance", "trn2.48xlarge", "-tp", "64", "--max-model-len", "16384", "--override-neuron-config", narrow)
    _, wider = plan(capsys, "llama-4-scout", *words)
    sizes = [each["memory_per_core"]["weights"]["vision"] for each in (found, wider)]
    assert sizes[1] == pytest.approx(2 * sizes[0], rel=1e-3)


def test_a_config_without_its_image_encoder(capsys, tmp_path):
    config = json.loads((CONFIGS / "llama-4-scout" / "config.json").read_text())
    del config["vision_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    status, found = plan(capsys, tmp_path, "--max-model-len", "2048")
    assert status == 1
    assert "image_size" in " ".join(fault["why"] for fault in found["faults"] if fault["name"] == "config.json")
