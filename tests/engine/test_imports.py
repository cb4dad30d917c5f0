"""Import paths that programs use, and what importing costs."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import vllm

PATHS = [
    "vllm.sampling_params:SamplingParams BeamSearchParams StructuredOutputsParams RequestOutputKind SamplingType",
    "vllm.sampling_params:RepetitionDetectionParams GuidedDecodingParams",
    "vllm.outputs:RequestOutput CompletionOutput PoolingRequestOutput EmbeddingRequestOutput",
    "vllm.inputs:TextPrompt TokensPrompt PromptType",
    "vllm.pooling_params:PoolingParams",
    "vllm.engine.arg_utils:EngineArgs AsyncEngineArgs",
    "vllm.engine.async_llm_engine:AsyncLLMEngine AsyncEngineDeadError",
    "vllm.engine.llm_engine:LLMEngine",
    "vllm.v1.engine.async_llm:AsyncLLM",
    "vllm.v1.engine.llm_engine:LLMEngine",
    "vllm.v1.engine.exceptions:EngineDeadError EngineGenerateError",
    "vllm.v1.engine:EngineCoreRequest EngineCoreOutput EngineCoreOutputs",
    "vllm.v1.metrics.reader:Counter Gauge Histogram Metric",
    "vllm.v1.metrics.stats:RequestStateStats",
    "vllm.lora.request:LoRARequest",
    "vllm.logprobs:Logprob FlatLogprobs",
    "vllm.sequence:Logprob",
    "vllm.beam_search:BeamSearchOutput BeamSearchSequence",
    "vllm.utils:random_uuid FlexibleArgumentParser",
    "vllm.utils.argparse_utils:FlexibleArgumentParser",
    "vllm.usage.usage_lib:UsageContext",
    "vllm.exceptions:VLLMValidationError",
    "vllm.entrypoints.llm:LLM",
    "vllm.config:VllmConfig",
]


@pytest.mark.parametrize("path", PATHS)
def test_paths_resolve(path):
    module, _, names = path.partition(":")
    for name in names.split():
        assert hasattr(importlib.import_module(module), name), name


@pytest.mark.parametrize("name", vllm.__all__)
def test_top_level_names_resolve(name):
    assert getattr(vllm, name) is not None
    assert name in dir(vllm)


def test_models_are_listed_and_cannot_be_registered():
    assert "LlamaForCausalLM" in vllm.ModelRegistry.get_supported_archs()
    with pytest.raises(NotImplementedError, match=r"Mine cannot be registered.*compiled ahead of time"):
        vllm.ModelRegistry.register_model("Mine", "mine:Mine")


def test_names_that_are_not_there_say_why():
    with pytest.raises(AttributeError, match="one server a replica"):
        _ = vllm.initialize_ray_cluster
    with pytest.raises(AttributeError, match="no attribute 'LLMM'"):
        _ = vllm.LLMM


@pytest.mark.parametrize(
    ("code", "forbidden"),
    [
        ("import vllm", ["torch", "transformers", "numpy", "fastapi", "zmq", "tokenizers", "msgspec"]),
        ("from vllm import SamplingParams", ["torch", "transformers", "numpy", "fastapi", "zmq"]),
        ("from vllm import LLM, LLMEngine, AsyncLLMEngine", ["torch", "transformers", "fastapi"]),
    ],
)
def test_importing_is_light(code, forbidden):
    program = f"{code}\nimport sys\nprint(*[name for name in {forbidden!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


def test_generating_needs_neither_torch_nor_transformers(tiny_llama):
    program = (
        "import sys\nfrom vllm import LLM, SamplingParams\n"
        f"llm = LLM({str(tiny_llama)!r}, device='null', max_model_len=64, max_num_seqs=2)\n"
        "llm.chat([{'role': 'user', 'content': 'hi'}], SamplingParams(max_tokens=4), use_tqdm=False)\n"
        "print(*[name for name in ('torch', 'transformers', 'fastapi') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
