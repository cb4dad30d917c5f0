"""Beam search over an engine that gives log-probabilities: a token a step, of each beam the 2 * beam_width likeliest.

A beam that reaches EOS is complete and leaves the search; the best beam_width of all remain at the end. Beams are
ranked by cumulative log-probability / length ** length_penalty, prompt included, an EOS at the end not counted.
Log-probabilities are of the raw logits, so a temperature changes nothing.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from vllm.engine.tokenizer import Tokenizer
from vllm.exceptions import EngineGenerateError, VLLMValidationError
from vllm.logprobs import Logprob
from vllm.outputs import BeamSearchSequence, CompletionOutput, RequestOutput
from vllm.sampling_params import BeamSearchParams, RequestOutputKind, SamplingParams


class BeamSearch:
    """The search for one prompt. Ask for `beams`, generate one token for each, `advance`; until `beams` is empty.

    eos_token_ids: what completes a beam. max_model_len: no beam grows beyond it.
    """

    def __init__(
        self,
        prompt: Any,
        prompt_token_ids: list[int],
        params: BeamSearchParams,
        eos_token_ids: Sequence[int],
        max_model_len: int,
    ) -> None:
        if params.structured_outputs is not None:
            raise VLLMValidationError(
                "structured_outputs cannot be combined with beam search.", parameter="structured_outputs"
            )
        self.params = params
        self.num_prompt_tokens = len(prompt_token_ids)
        self.beams = [BeamSearchSequence(prompt, list(prompt_token_ids), [])]
        self._eos = frozenset() if params.ignore_eos else frozenset(eos_token_ids)
        self._max_len = min(self.num_prompt_tokens + params.max_tokens, max_model_len)
        self._complete: list[BeamSearchSequence] = []

    def advance(self, logprobs: list[dict[int, Logprob]]) -> None:
        """Take in, for each beam in order, the log-probabilities of what may follow."""
        grown: list[BeamSearchSequence] = []
        for beam, position in zip(self.beams, logprobs, strict=True):
            for token_id in _most_likely(position, 2 * self.params.beam_width):
                self._grow(beam, token_id, position, grown)
        grown.sort(key=self._score, reverse=True)
        self.beams = grown[: self.params.beam_width]
        if self.beams and len(self.beams[0].tokens) >= self._max_len:
            self._complete += [dataclasses.replace(beam, finish_reason="length") for beam in self.beams]
            self.beams = []

    def result(self, tokenizer: Tokenizer | None) -> list[BeamSearchSequence]:
        """The best beams, best first; with a tokenizer, with their text."""
        best = sorted(self._complete, key=self._score, reverse=True)[: self.params.beam_width]
        if tokenizer is not None:
            for beam in best:
                beam.text = tokenizer.decode(beam.tokens, self.params.skip_special_tokens)
        return best

    def _grow(
        self,
        beam: BeamSearchSequence,
        token_id: int,
        position: dict[int, Logprob],
        grown: list[BeamSearchSequence],
    ) -> None:
        total = beam.cum_logprob + position[token_id].logprob
        longer = dataclasses.replace(
            beam, tokens=[*beam.tokens, token_id], logprobs=[*beam.logprobs, position], cum_logprob=total
        )
        if token_id not in self._eos:
            grown.append(longer)
            return
        longer.finish_reason = "stop"
        if not self.params.include_stop_str_in_output:
            longer.tokens, longer.logprobs = beam.tokens, beam.logprobs
        self._complete.append(longer)

    def _score(self, beam: BeamSearchSequence) -> float:
        length = len(beam.tokens) - (beam.tokens[-1] in self._eos)
        return float(beam.cum_logprob / max(length, 1) ** self.params.length_penalty)


def step_params(params: BeamSearchParams) -> SamplingParams:
    """Of the request for a beam's next token."""
    return SamplingParams(
        max_tokens=1,
        temperature=0.0,
        logprobs=2 * params.beam_width,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def next_logprobs(output: RequestOutput) -> dict[int, Logprob]:
    """What may follow, from the output of `step_params`. Raises EngineGenerateError if the request failed."""
    completion = output.outputs[0]
    if not completion.logprobs:
        raise EngineGenerateError(f"a beam ended with {completion.finish_reason}: {completion.stop_reason}")
    position: dict[int, Logprob] = completion.logprobs[0]
    return position


async def search_async(
    engine: Any,
    prompt: dict[str, Any],
    params: BeamSearchParams,
    request_id: str,
    eos_token_ids: Sequence[int],
    **options: Any,
) -> RequestOutput:
    """Beam search for one prompt over an `AsyncLLM`; its outputs are the beams, without the prompt.

    options: of `AsyncLLM.generate`.
    """
    token_ids = prompt["prompt_token_ids"]
    search = BeamSearch(None, token_ids, params, eos_token_ids, engine.model_config.max_len)
    step = 0
    while search.beams:
        beams = [
            _one_token(engine, {**prompt, "prompt_token_ids": beam.tokens}, params, f"{request_id}-{step}-{i}", options)
            for i, beam in enumerate(search.beams)
        ]
        search.advance(await _all(beams))
        step += 1
    outputs = [_completion(i, beam, len(token_ids), engine, params) for i, beam in enumerate(search.result(None))]
    return RequestOutput(request_id, prompt.get("prompt"), token_ids, None, outputs, True)


async def _one_token(
    engine: Any, prompt: dict[str, Any], params: BeamSearchParams, request_id: str, options: dict[str, Any]
) -> dict[int, Logprob]:
    final = None
    async with aclosing(engine.generate(prompt, step_params(params), request_id, **options)) as outputs:
        async for output in outputs:
            final = output
    if final is None:
        raise EngineGenerateError("a beam ended without an output")
    return next_logprobs(final)


async def _all(work: list[Any]) -> list[Any]:
    """The results, in order. If one fails, or this is cancelled, all others are."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _completion(
    index: int, beam: BeamSearchSequence, num_prompt: int, engine: Any, params: BeamSearchParams
) -> CompletionOutput:
    token_ids = beam.tokens[num_prompt:]
    text = "" if engine.tokenizer is None else engine.tokenizer.decode(token_ids, params.skip_special_tokens)
    return CompletionOutput(index, text, token_ids, beam.cum_logprob, beam.logprobs, finish_reason=beam.finish_reason)


def _most_likely(position: dict[int, Logprob], count: int) -> list[int]:
    return sorted(position, key=lambda token_id: -position[token_id].logprob)[:count]
