"""A real model: prefix caching and chunked prefill change no bit of its answers."""

from __future__ import annotations

from vllm import LLM, SamplingParams

SYSTEM = "You are a helpful assistant who knows geography and answers in one short sentence. " * 4
PROMPTS = [SYSTEM + question for question in ("The capital of France is", "The capital of Japan is", "Rivers of Peru:")]


def answers(model, **options):
    llm = LLM(str(model), device="cpu", max_num_seqs=2, max_model_len=160, **options)
    params = SamplingParams(temperature=0.0, max_tokens=12, logprobs=2, ignore_eos=True)
    rounds = [llm.generate(PROMPTS, params, use_tqdm=False) for _ in range(2)]
    llm.shutdown()
    cached = [[output.num_cached_tokens for output in outputs] for outputs in rounds]
    return [[(o.outputs[0].token_ids, o.outputs[0].logprobs) for o in outputs] for outputs in rounds], cached


def test_cached_and_chunked_answers_are_the_same_to_the_last_bit(smollm2):
    (plain, _), nothing = answers(smollm2, enable_prefix_caching=False, enable_chunked_prefill=False)
    assert nothing == [[0, 0, 0], [0, 0, 0]]
    block_kv, cached = answers(
        smollm2, enable_prefix_caching=True, enable_chunked_prefill=True, max_num_batched_tokens=24
    )
    assert block_kv == [plain, plain]
    assert cached[0][0] == 0 and all(count >= 32 for count in cached[0][1:] + cached[1])
