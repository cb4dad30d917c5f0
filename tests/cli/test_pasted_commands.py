"""The commands of AWS's guides, tutorials and model cards, as they are printed: each is planned for the accelerator.

What is refused is refused because it would change what comes out, or cannot be done; the rest starts, with a note
where an option has no effect. Of a model only its config.json is there; another of its architecture may stand for it.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from tests.cli.neuron import CONFIGS
from tests.neuron.configs import TINYLLAMA
from tests.neuronx.adapters import make_adapter
from vllm import EngineArgs
from vllm.entrypoints.cli.neuron.plan import plan_of
from vllm.entrypoints.openai.cli_args import make_arg_parser
from vllm.plan.instances import find_instance
from vllm.plan.model_source import read_source
from vllm.utils.argparse_utils import FlexibleArgumentParser

LADDER = [256, 512, 1024, 2048, 4096, 8192, 10240, 12288, 16384]
CARD_70B = {
    "async_mode": True,
    "batch_size": 1,
    "tp_degree": 64,
    "seq_len": 16384,
    "logical_nc_config": 2,
    "attn_block_tkg_nki_kernel_cache_update": True,
    "attn_block_tkg_nki_kernel_enabled": True,
    "attn_kernel_enabled": True,
    "cc_pipeline_tiling_factor": 1,
    "enable_bucketing": True,
    "fused_qkv": True,
    "is_continuous_batching": True,
    "k_cache_transposed": True,
    "kv_cache_tiling": False,
    "mlp_kernel_enabled": True,
    "qkv_kernel_enabled": True,
    "sequence_parallel_enabled": True,
    "torch_dtype": "bfloat16",
    "token_generation_buckets": LADDER,
    "context_encoding_buckets": LADDER,
    "on_device_sampling_config": {"do_sample": True, "dynamic": True},
}
CARD_MOE = {
    "tp_degree": 64,
    "attention_dp_degree": 8,
    "cp_degree": 16,
    "moe_tp_degree": 2,
    "moe_ep_degree": 32,
    "use_index_calc_kernel": True,
    "mode_mask_padded_tokens": True,
    "batch_size": 16,
    "ctx_batch_size": 1,
    "max_context_length": 16384,
    "seq_len": 16384,
    "scratch_pad_size": 1024,
    "torch_dtype": "float16",
    "is_continuous_batching": True,
    "fused_qkv": True,
    "enable_bucketing": True,
    "logical_nc_config": 2,
    "blockwise_matmul_config": {"use_shard_on_intermediate_dynamic_while": True, "skip_dma_token": True},
    "on_device_sampling_config": {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95},
    "token_generation_buckets": [10240, 16384],
    "context_encoding_buckets": [10240, 16384],
    "flash_decoding_enabled": False,
    "cc_pipeline_tiling_factor": 2,
    "sequence_parallel_enabled": True,
    "qkv_kernel_enabled": True,
    "qkv_nki_kernel_enabled": True,
    "qkv_cte_nki_kernel_fuse_rope": True,
    "attn_kernel_enabled": True,
    "strided_context_parallel_kernel_enabled": True,
    "async_mode": True,
}
SCOUT = {
    "text_config": {
        "batch_size": 1,
        "is_continuous_batching": True,
        "enable_bucketing": True,
        "torch_dtype": "float16",
        "seq_len": 8192,
        "context_encoding_buckets": LADDER[:6],
        "token_generation_buckets": LADDER[:6],
        "async_mode": True,
        "world_size": 64,
        "tp_degree": 64,
        "cp_degree": 16,
        "cast_type": "as-declared",
        "logical_neuron_cores": 2,
        "sequence_parallel_enabled": True,
        "fused_qkv": True,
        "attn_kernel_enabled": True,
        "blockwise_matmul_config": {"block_size": 256, "use_block_parallel": True, "skip_dma_token": True},
    },
    "vision_config": {
        "batch_size": 1,
        "seq_len": 8192,
        "torch_dtype": "float16",
        "tp_degree": 16,
        "cp_degree": 1,
        "dp_degree": 4,
        "world_size": 64,
        "fused_qkv": True,
        "qkv_kernel_enabled": True,
        "attn_kernel_enabled": True,
        "mlp_kernel_enabled": True,
        "enable_bucketing": True,
        "buckets": [8, 28, 88],
        "logical_neuron_cores": 2,
        "save_sharded_checkpoint": True,
    },
}
BUCKETS = {
    "enable_bucketing": True,
    "context_encoding_buckets": [256, 512, 1024],
    "max_context_length": 1024,
    "token_generation_buckets": [32, 64, 128, 256, 512, 768],
    "seq_len": 1024,
    "batch_size": 1,
    "ctx_batch_size": 1,
    "tkg_batch_size": 1,
    "is_continuous_batching": True,
}
PREFIXES = {"is_prefix_caching": True, "is_block_kv_layout": True, "pa_num_blocks": 256, "pa_block_size": 32}


def _override(entries):
    return ("--additional-config", json.dumps({"override_neuron_config": entries}))


OF_OLD = ("--device", "neuron", "--use-v2-block-manager")
SERVE = {
    "quickstart": (
        "8b",
        *[
            "--tensor-parallel-size",
            "8",
            "--max-model-len",
            "128",
            "--max-num-seqs",
            "4",
            "--no-enable-prefix-caching",
            "--port",
            "8000",
        ],
        *_override({"enable_bucketing": False}),
    ),
    "quickstart, prefixes": (
        "tinyllama",
        *[
            "--tensor-parallel-size",
            "32",
            "--max-model-len",
            "1024",
            "--max-num-seqs",
            "8",
            "--block-size",
            "32",
            "--enable-prefix-caching",
            "--num-gpu-blocks-override",
            "256",
        ],
        *_override(PREFIXES),
    ),
    "quickstart, buckets": (
        "8b",
        *[
            "--tensor-parallel-size",
            "32",
            "--max-num-seqs",
            "1",
            "--max-model-len",
            "1024",
            "--no-enable-prefix-caching",
        ],
        *_override(BUCKETS),
    ),
    "guide": (
        "tinyllama",
        *[
            "--tensor-parallel-size",
            "2",
            "--max-model-len",
            "128",
            "--max-num-seqs",
            "4",
            "--block-size",
            "32",
            "--num-gpu-blocks-override",
            "16",
            "--port",
            "8000",
        ],
    ),
    "guide of the fork": (
        "8b",
        *["--max-num-seqs=4", "--max-model-len=128", "--tensor-parallel-size=8", "--port=8080"],
        *OF_OLD[:2],
        "--override-neuron-config",
        '{"enable_bucketing":false}',
    ),
    "70B": (
        "70b",
        *["--max-num-seqs", "1", "--max-model-len", "12800", "--tensor-parallel-size", "64", "--port", "8000"],
        *OF_OLD,
        "--override-neuron-config",
        '{"on_device_sampling_config": {"do_sample": true}, "skip_warmup": true}',
    ),
    "70B, model card": (
        "70b",
        *["--tensor-parallel-size=64", "--max-num-seqs=1", "--max-model-len=16384", "--port=8080"],
        *_override(CARD_70B),
    ),
    "70B, fp8": (
        "70b",
        *[
            "--tensor-parallel-size",
            "64",
            "--max-num-seqs",
            "4",
            "--max-model-len",
            "5120",
            "--port",
            "8000",
            "--block_size",
            "128",
            "--disable-log-requests",
            "--num-gpu-blocks-override",
            "4",
            "--no-enable-prefix-caching",
        ],
        *_override({"max_prompt_length": 4096}),
    ),
    "70B, without prefixes": (
        "70b",
        *[
            "--max-num-seqs",
            "4",
            "--max-model-len",
            "8192",
            "--tensor-parallel-size",
            "64",
            "--block-size",
            "32",
            "--no-enable-prefix-caching",
        ],
    ),
    "70B, prefixes": (
        "70b",
        *[
            "--max-num-seqs",
            "4",
            "--max-model-len",
            "8192",
            "--tensor-parallel-size",
            "64",
            "--block-size",
            "32",
            "--num-gpu-blocks-override",
            "2048",
            "--enable-prefix-caching",
        ],
        *_override({"is_block_kv_layout": True, "is_prefix_caching": True}),
    ),
    "70B, replicas": (
        "70b",
        *[
            "--max-num-seqs",
            "4",
            "--max-model-len",
            "8192",
            "--no-enable-prefix-caching",
            "--tensor-parallel-size",
            "32",
        ],
        *_override({"on_device_sampling_config": {"do_sample": True, "global_topk": 64}}),
    ),
    "70B, draft": (
        "70b",
        *[
            "--max-num-seqs",
            "1",
            "--max-model-len",
            "12800",
            "--tensor-parallel-size",
            "64",
            "--num-speculative-tokens",
            "7",
            "--speculative-max-model-len",
            "12800",
        ],
        *OF_OLD,
        "--speculative-model",
        "DRAFT",
        "--override-neuron-config",
        '{"enable_fused_speculation":true}',
    ),
    "Qwen 3, baseline": (
        "qwen3",
        *["--tensor-parallel-size", "64", "--max-num-seqs", "1", "--max-model-len", "6400"],
        "--override-neuron-config",
        '{"save_sharded_checkpoint": true}',
    ),
    "Qwen 3 MoE": (
        "moe",
        *[
            "--tensor-parallel-size=64",
            "--max-num-seqs=16",
            "--max-model-len=16384",
            "--port=8080",
            "--no-enable-chunked-prefill",
            "--no-enable-prefix-caching",
        ],
        *_override(CARD_MOE),
    ),
    "EAGLE": (
        "8b",
        *["--tensor-parallel-size", "32", "--max-model-len", "2048", "--max-num-seqs", "4"],
        "--speculative-config",
        '{"model": "HEAD", "method": "eagle", "num_speculative_tokens": 5, "max_model_len": 2048}',
    ),
    "adapters": (
        "tinyllama",
        *[
            "--tensor-parallel-size",
            "32",
            "--max-model-len",
            "1024",
            "--max-num-seqs",
            "2",
            "--enable-lora",
            "--max-loras",
            "2",
            "--max-cpu-loras",
            "4",
            "--lora-modules",
            "tarot=ADAPTER/a",
            "support=ADAPTER/b",
        ],
        *_override({"lora_ckpt_json": "ADAPTER/lora_config.json"}),
    ),
    "Scout": (
        "scout",
        *[
            "--max-num-seqs",
            "1",
            "--max-model-len",
            "8192",
            "--tensor-parallel-size",
            "64",
            "--port",
            "8000",
            "--disable-log-requests",
            "--limit-mm-per-prompt",
            "image=5",
        ],
        *_override(SCOUT),
    ),
    "model card of a stranger": (
        "8b",
        *["--trust-remote-code", "--max-model-len", "2048", "--max-num-seqs", "4", "-tp", "8"],
    ),
}
"""By where they stand: what follows `vllm serve`. Names in capitals are directories."""

REFUSED = {
    "EAGLE with a whole model": (
        (
            "qwen3",
            *["--tensor-parallel-size", "64", "--max-num-seqs", "1", "--max-model-len", "6400"],
            "--speculative-config",
            '{"model": "DRAFT", "num_speculative_tokens": 7, "max_model_len": 2048, "method": "eagle"}',
        ),
        {"speculative_config"},
    ),
    "Scout beyond its attention's temperature": (
        (
            "scout",
            *[
                "--max-num-seqs",
                "1",
                "--max-model-len",
                "16384",
                "--tensor-parallel-size",
                "64",
                "--limit-mm-per-prompt",
                "image=5",
            ],
        ),
        {"max_model_len"},
    ),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory, tiny_llama):
    """What the commands name, by its name."""
    root = tmp_path_factory.mktemp("pasted")
    names = {
        "8b": "llama-3.1-8b",
        "70b": "llama-3.1-70b",
        "qwen3": "qwen3-8b",
        "moe": "qwen3-30b-a3b",
        "scout": "llama-4-scout",
    }
    tiny = {**TINYLLAMA, "model_type": "llama", "intermediate_size": 5632, "max_position_embeddings": 2048}
    (root / "tinyllama").mkdir()
    (root / "tinyllama" / "config.json").write_text(json.dumps(tiny))
    (root / "head").mkdir()
    (root / "head" / "config.json").write_text((CONFIGS / "llama-3.1-8b" / "config.json").read_text())
    tensors = ("fc.weight", "embed_tokens.weight", "lm_head.weight", "layers.0.self_attn.q_proj.weight")
    save_file({name: torch.zeros(1, 1) for name in tensors}, root / "head" / "model.safetensors")
    for seed, name in enumerate("ab"):
        make_adapter(root / "adapters" / name, tiny_llama, seed)
    paths = {"tarot": "a", "support": "b"}
    content = {"lora-ckpt-dir": str(root / "adapters"), "lora-ckpt-paths": paths, "lora-ckpt-paths-cpu": paths}
    (root / "adapters" / "lora_config.json").write_text(json.dumps(content))
    found = {short: CONFIGS / name for short, name in names.items()}
    return found | {"tinyllama": root / "tinyllama", "HEAD": root / "head", "ADAPTER": root / "adapters"}


def _planned(words, places):
    model, *options = words
    draft = places["qwen3"] if model == "qwen3" else places["8b"]
    for name, path in (("DRAFT", draft), ("HEAD", places["HEAD"]), ("ADAPTER", places["ADAPTER"])):
        options = [word.replace(name, str(path)) for word in options]
    parser = make_arg_parser(FlexibleArgumentParser())
    args = EngineArgs.from_cli_args(parser.parse_args(["--model", str(places[model]), *options]))
    plan = plan_of(replace(args, device="neuronx"), read_source(str(places[model])), find_instance("trn2.48xlarge"))
    return {fault.name: str(fault) for fault in plan.faults}


@pytest.mark.parametrize("where", sorted(SERVE))
def test_a_printed_command_starts(where, places):
    assert _planned(SERVE[where], places) == {}


@pytest.mark.parametrize("where", sorted(REFUSED))
def test_a_printed_command_is_refused_for_what_would_change_its_answers(where, places):
    words, named = REFUSED[where]
    assert set(_planned(words, places)) == named
