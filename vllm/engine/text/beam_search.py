"""Beam search over an engine that gives log-probabilities: a token a step, of each beam the 2 * beam_width likeliest.

A beam that reaches EOS is complete and leaves the search; the best beam_width of all remain at the end. Beams are
ranked by cumulative log-probability / length ** length_penalty, prompt included, an EOS at the end not counted.
Log-probabilities are of the raw logits, so a temperature changes nothing.
"""

from __future__ import annotations

import asyncio
import dataclasses
import heapq
from collections.abc import Sequence
from contextlib import aclosing
from operator import itemgetter
from typing import Any

from vllm.core.contract import Capabilities
from vllm.engine.client import EngineClient
from vllm.engine.text.tokenizer import Tokenizer
from vllm.exceptions import EngineGenerateError, VLLMValidationError
from vllm.inputs import TokensPrompt
from vllm.logprobs import Logprob
from vllm.lora.request import LoRARequest
from vllm.outputs import BeamSearchSequence, CompletionOutput, RequestOutput
from vllm.sampling_params import BeamSearchParams, RequestOutputKind, SamplingParams

MAX_BEAM_WIDTH = 128
"""Beams of one prompt at most. A step asks for twice as many log-probabilities of each, so its cost is quadratic."""


class BeamSearch:
    """The search for one prompt. Ask for `beams`, generate one token for each, `advance`; until `beams` is empty.

    eos_token_ids: what completes a beam. max_model_len: no beam grows beyond it. keeps_eos: complete beams hold the EOS
    token that ended them.
    """

    def __init__(
        self,
        prompt: Any,
        prompt_token_ids: list[int],
        params: BeamSearchParams,
        eos_token_ids: Sequence[int],
        max_model_len: int,
        *,
        keeps_eos: bool,
        lora_request: LoRARequest | None = None,
    ) -> None:
        if params.structured_outputs is not None:
            raise VLLMValidationError(
                "structured_outputs cannot be combined with beam search.", parameter="structured_outputs"
            )
        self.params = params
        self.num_prompt_tokens = len(prompt_token_ids)
        self.beams = [BeamSearchSequence(prompt, list(prompt_token_ids), [], lora_request)]
        self._keeps_eos = keeps_eos
        self._eos = frozenset() if params.ignore_eos else frozenset(eos_token_ids)
        self._max_len = min(self.num_prompt_tokens + params.max_tokens, max_model_len)
        self._complete: list[BeamSearchSequence] = []

    def advance(self, logprobs: list[dict[int, Logprob]]) -> None:
        """Take in, for each beam in order, the log-probabilities of what may follow."""
        candidates: list[tuple[float, int, int]] = []
        for i, (beam, position) in enumerate(zip(self.beams, logprobs, strict=True)):
            for token_id in _most_likely(position, 2 * self.params.beam_width):
                total = beam.cum_logprob + position[token_id].logprob
                if token_id in self._eos:
                    self._complete.append(self._end(beam, token_id, position, total))
                else:
                    candidates.append((total, i, token_id))
        best = heapq.nlargest(self.params.beam_width, candidates, key=itemgetter(0))
        self.beams = [_longer(self.beams[i], token_id, logprobs[i], total) for total, i, token_id in best]
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

    def _end(
        self, beam: BeamSearchSequence, token_id: int, position: dict[int, Logprob], total: float
    ) -> BeamSearchSequence:
        if self._keeps_eos:
            return dataclasses.replace(_longer(beam, token_id, position, total), finish_reason="stop")
        return dataclasses.replace(beam, cum_logprob=total, finish_reason="stop")

    def _score(self, beam: BeamSearchSequence) -> float:
        length = len(beam.tokens) - (beam.tokens[-1] in self._eos)
        return float(beam.cum_logprob / max(length, 1) ** self.params.length_penalty)


def _longer(beam: BeamSearchSequence, token_id: int, position: dict[int, Logprob], total: float) -> BeamSearchSequence:
    return dataclasses.replace(
        beam, tokens=[*beam.tokens, token_id], logprobs=[*beam.logprobs, position], cum_logprob=total
    )


def check_search(beam_width: int, capabilities: Capabilities, name: str = "beam_width") -> None:
    """Raises VLLMValidationError for a search that the loaded model cannot do. name: what the user calls the width."""
    if beam_width > MAX_BEAM_WIDTH:
        raise VLLMValidationError(
            f"{name}={beam_width} is more than the {MAX_BEAM_WIDTH} beams that a search may have.", parameter=name
        )
    if "logprobs" not in capabilities.sampling:
        raise VLLMValidationError(
            "Beam search needs log-probabilities of the tokens that may follow, which this model does not give on the "
            f"{capabilities.target} target.",
            parameter=name,
        )


def step_params(params: BeamSearchParams, vocab_size: int, num_logprobs: int = 0) -> SamplingParams:
    """Of the request for a beam's next token. num_logprobs: how many are to be reported to the user."""
    return SamplingParams(
        max_tokens=1,
        temperature=0.0,
        logprobs=min(max(2 * params.beam_width, num_logprobs), vocab_size),
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        is_internal=True,
    )


def next_logprobs(output: RequestOutput) -> dict[int, Logprob]:
    """What may follow, from the output of `step_params`. Raises EngineGenerateError if the request failed."""
    completion = output.outputs[0]
    if not completion.logprobs:
        raise EngineGenerateError(f"a beam ended with {completion.finish_reason}: {completion.stop_reason}")
    position: dict[int, Logprob] = completion.logprobs[0]
    return position


async def search_async(
    engine: EngineClient,
    prompt: TokensPrompt,
    params: BeamSearchParams,
    request_id: str,
    eos_token_ids: Sequence[int],
    num_logprobs: int = 0,
    **options: Any,
) -> RequestOutput:
    """Beam search for one prompt over an `AsyncLLM`; its outputs are the beams, without the prompt.

    The EOS token that ended a beam is left out, unless include_stop_str_in_output. num_logprobs: how many each position
    holds at least. options: of `AsyncLLM.generate`.
    """
    config, token_ids = engine.model_config, prompt["prompt_token_ids"]
    keeps_eos = params.include_stop_str_in_output
    search = BeamSearch(None, token_ids, params, eos_token_ids, config.max_len, keeps_eos=keeps_eos)
    of_step = step_params(params, config.vocab_size, num_logprobs)
    step = 0
    while search.beams:
        beams = [
            _one_token(engine, _continued(prompt, beam.tokens), of_step, f"{request_id}-{step}-{i}", options)
            for i, beam in enumerate(search.beams)
        ]
        search.advance(await _all(beams))
        step += 1
    outputs = [_completion(i, beam, len(token_ids), engine, params) for i, beam in enumerate(search.result(None))]
    return RequestOutput(request_id, prompt.get("prompt"), token_ids, None, outputs, True)


def _continued(prompt: TokensPrompt, token_ids: list[int]) -> TokensPrompt:
    longer = prompt.copy()
    longer["prompt_token_ids"] = token_ids
    return longer


async def _one_token(
    engine: EngineClient, prompt: TokensPrompt, params: SamplingParams, request_id: str, options: dict[str, Any]
) -> dict[int, Logprob]:
    final = None
    async with aclosing(engine.generate(prompt, params, request_id, **options)) as outputs:
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
    index: int, beam: BeamSearchSequence, num_prompt: int, engine: EngineClient, params: BeamSearchParams
) -> CompletionOutput:
    token_ids = beam.tokens[num_prompt:]
    text = "" if engine.tokenizer is None else engine.tokenizer.decode(token_ids, params.skip_special_tokens)
    return CompletionOutput(index, text, token_ids, beam.cum_logprob, beam.logprobs, finish_reason=beam.finish_reason)


def _most_likely(position: dict[int, Logprob], count: int) -> list[int]:
    return sorted(position, key=lambda token_id: -position[token_id].logprob)[:count]
