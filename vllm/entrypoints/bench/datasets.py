"""What is asked of a model: prompts and lengths of outputs, made up or read from a file.

random              words drawn at random, of given lengths, after a prefix that all share
sharegpt            first questions of conversations, as long as their answers were (--dataset-path)
prefix_repetition   a few prefixes, each continued by many suffixes: what a prefix cache is good for
sonnet              lines of a text (--dataset-path; without one the package's own help texts): the first of them in all
                    prompts, the others drawn at random

Lengths are in tokens, with the special tokens that the tokenizer adds. The same seed gives the same requests.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vllm import envs
from vllm.engine.text.tokenizer import Tokenizer

_WORD = re.compile(r"[Ġ▁][A-Za-z]+")
_TRIES = 10
_SHORTEST, _LONGEST_PROMPT, _LONGEST = 4, 1024, 2048
_INSTRUCTION = "Go on with this text in its own manner:\n"


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """prompt_token_ids: those of the prompt, special tokens included. output_len: tokens to generate."""

    prompt: str
    prompt_token_ids: list[int]
    output_len: int

    @property
    def prompt_len(self) -> int:
        return len(self.prompt_token_ids)


class TextMaker:
    """Texts of exactly so many tokens, that read as words."""

    def __init__(self, tokenizer: Tokenizer, rng: np.random.Generator) -> None:
        self.tokenizer = tokenizer
        self.rng = rng
        self.num_special = len(tokenizer.encode(""))
        self._words = _words(tokenizer)

    def tokens(self, count: int) -> list[int]:
        """Ids of a text that has just these tokens, wherever it stands among others."""
        ids = self._draw(count)
        for _ in range(_TRIES):
            again = self.tokenizer.encode(self.tokenizer.decode(ids), add_special_tokens=False)
            if again == ids:
                return ids
            ids = again[:count] + self._draw(count - len(again))
        raise ValueError(f"this tokenizer gives no text that has exactly {count} tokens")

    def request(self, ids: list[int], output_len: int) -> SampleRequest:
        return _request(self.tokenizer, self.tokenizer.decode(ids), output_len)

    def _draw(self, count: int) -> list[int]:
        return [int(i) for i in self.rng.choice(self._words, max(count, 0))]


def _words(tokenizer: Tokenizer) -> list[int]:
    """Tokens that are a space and a word, and stay one token whatever words are beside them."""
    vocab = tokenizer.get_vocab()
    ids = sorted(i for token, i in vocab.items() if _WORD.fullmatch(token) and i not in tokenizer.special_ids)
    pairs = tokenizer.backend_tokenizer.encode_batch([tokenizer.decode([i, i]) for i in ids], add_special_tokens=False)
    words = [i for i, pair in zip(ids, pairs, strict=True) if pair.ids == [i, i]]
    if not words:
        raise ValueError("this tokenizer has no tokens that are words: use a dataset of texts (sharegpt, sonnet)")
    return words


def _request(tokenizer: Tokenizer, prompt: str, output_len: int) -> SampleRequest:
    return SampleRequest(prompt, tokenizer.encode(prompt), output_len)


# The datasets. Each takes the command line, a tokenizer and a random generator.


def random_requests(args: argparse.Namespace, tokenizer: Tokenizer, rng: np.random.Generator) -> list[SampleRequest]:
    maker = TextMaker(tokenizer, rng)
    prefix = maker.tokens(args.random_prefix_len)
    spread = args.random_range_ratio

    def around(length: int, least: int) -> int:
        return max(least, int(rng.integers(round(length * (1 - spread)), round(length * (1 + spread)), endpoint=True)))

    return [
        maker.request(
            prefix + maker.tokens(around(args.random_input_len, 1) - maker.num_special),
            around(args.random_output_len, 1),
        )
        for _ in range(args.num_prompts)
    ]


def prefix_repetition_requests(
    args: argparse.Namespace, tokenizer: Tokenizer, rng: np.random.Generator
) -> list[SampleRequest]:
    maker = TextMaker(tokenizer, rng)
    prefix_len = args.prefix_repetition_prefix_len - maker.num_special
    prefixes = [maker.tokens(prefix_len) for _ in range(args.prefix_repetition_num_prefixes)]
    requests = [
        maker.request(
            prefixes[i % len(prefixes)] + maker.tokens(args.prefix_repetition_suffix_len),
            args.prefix_repetition_output_len,
        )
        for i in range(args.num_prompts)
    ]
    return [requests[i] for i in rng.permutation(len(requests))]


def sharegpt_requests(args: argparse.Namespace, tokenizer: Tokenizer, rng: np.random.Generator) -> list[SampleRequest]:
    if args.dataset_path is None:
        raise ValueError("--dataset-name sharegpt needs --dataset-path: a JSON list of conversations")
    turns = _conversations(Path(args.dataset_path).expanduser())
    found: list[SampleRequest] = []
    for i in rng.permutation(len(turns)):
        if len(found) == args.num_prompts:
            break
        question, answer = turns[i]
        request = _request(tokenizer, question, args.sharegpt_output_len or len(tokenizer.encode(answer)))
        if _is_of_use(request):
            found.append(request)
    if not found:
        raise ValueError(f"{args.dataset_path} has no conversation of a question and an answer of usual lengths")
    if len(found) < args.num_prompts:
        print(f"{args.dataset_path} gives {len(found)} requests: they are repeated", file=sys.stderr)
    return [found[i % len(found)] for i in range(args.num_prompts)]


def _conversations(path: Path) -> list[tuple[str, str]]:
    """The first two turns of each."""
    try:
        entries = json.loads(path.read_text())
        starts = [entry["conversations"][:2] for entry in entries]
        return [(turns[0]["value"], turns[1]["value"]) for turns in starts if len(turns) == 2]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f'{path} is no list of {{"conversations": [{{"value": TEXT}}, ...]}}: {type(error).__name__}: {error}'
        ) from None


def _is_of_use(request: SampleRequest) -> bool:
    """Neither trivial nor longer than what most models are served with."""
    total = request.prompt_len + request.output_len
    shortest = min(request.prompt_len, request.output_len)
    return shortest >= _SHORTEST and request.prompt_len <= _LONGEST_PROMPT and total <= _LONGEST


def sonnet_requests(args: argparse.Namespace, tokenizer: Tokenizer, rng: np.random.Generator) -> list[SampleRequest]:
    lines = own_text() if args.dataset_path is None else Path(args.dataset_path).expanduser().read_text().splitlines()
    lines = [line for line in lines if line.strip()]
    lengths = [len(tokenizer.encode(line + "\n", add_special_tokens=False)) for line in lines]
    start = len(tokenizer.encode(_INSTRUCTION))
    if not lines or start + min(lengths) > args.sonnet_input_len:
        raise ValueError(f"--sonnet-input-len {args.sonnet_input_len} has no room for a line of the text")
    shared, used = _first_lines(lengths, min(args.sonnet_prefix_len, args.sonnet_input_len) - start)
    return [
        _sonnet(tokenizer, lines, [*range(shared), *_fitting(lengths, args.sonnet_input_len - start - used, rng)], args)
        for _ in range(args.num_prompts)
    ]


def _sonnet(
    tokenizer: Tokenizer, lines: Sequence[str], chosen: Sequence[int], args: argparse.Namespace
) -> SampleRequest:
    text = _INSTRUCTION + "".join(f"{lines[i]}\n" for i in chosen)
    return _request(tokenizer, text, args.sonnet_output_len)


def _first_lines(lengths: Sequence[int], room: int) -> tuple[int, int]:
    """How many of the first lines fit into `room` tokens, and the tokens they take."""
    count = used = 0
    while count < len(lengths) and used + lengths[count] <= room:
        used += lengths[count]
        count += 1
    return count, used


def _fitting(lengths: Sequence[int], room: int, rng: np.random.Generator) -> list[int]:
    """Lines drawn at random until the next would not fit."""
    chosen: list[int] = []
    while True:
        line = int(rng.integers(len(lengths)))
        room -= lengths[line]
        if room < 0:
            return chosen
        chosen.append(line)


def own_text() -> list[str]:
    """Some hundred lines of English that are always at hand: what the package says of its options."""
    from vllm.engine.arg_utils import EngineArgs

    helps = [each.metadata["help"] for each in dataclasses.fields(EngineArgs) if "foreign" not in each.metadata]
    return [*helps, *(variable.help for variable in envs.VARIABLES.values())]


DATASETS: dict[str, Callable[[argparse.Namespace, Tokenizer, np.random.Generator], list[SampleRequest]]] = {
    "random": random_requests,
    "sharegpt": sharegpt_requests,
    "prefix_repetition": prefix_repetition_requests,
    "sonnet": sonnet_requests,
}


def add_dataset_args(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("Dataset")

    def add(name: str, default: Any, text: str, **kwargs: Any) -> None:
        kind = {} if default is None else {"type": type(default)}
        group.add_argument(f"--{name}", default=default, help=text, **{**kind, **kwargs})

    add("dataset-name", "random", "What is asked. Default: random.", choices=sorted(DATASETS))
    add("dataset-path", None, "File of sharegpt (JSON) or sonnet (text).")
    add("num-prompts", 1000, "Number of requests.", dest="num_prompts")
    add("seed", 0, "Seed of the dataset and of arrivals.")
    add(
        "input-len",
        None,
        "Length of prompts, for the datasets that have one; before --random-input-len and so on.",
        type=int,
    )
    add("output-len", None, "Length of outputs, for every dataset.", type=int)
    add("random-input-len", 1024, "random: tokens of a prompt after the shared prefix.")
    add("random-output-len", 128, "random: tokens of an output.")
    add("random-range-ratio", 0.0, "random: lengths lie within this share around those given; 0 is exact.")
    add("random-prefix-len", 0, "random: tokens that all prompts begin with.")
    add("sharegpt-output-len", None, "sharegpt: tokens of an output, instead of those of the answer.", type=int)
    add("prefix-repetition-prefix-len", 256, "prefix_repetition: tokens of a prefix.")
    add("prefix-repetition-suffix-len", 256, "prefix_repetition: tokens of a suffix.")
    add("prefix-repetition-num-prefixes", 10, "prefix_repetition: number of prefixes.")
    add("prefix-repetition-output-len", 128, "prefix_repetition: tokens of an output.")
    add("sonnet-input-len", 550, "sonnet: most tokens of a prompt.")
    add("sonnet-output-len", 150, "sonnet: tokens of an output.")
    add("sonnet-prefix-len", 200, "sonnet: most tokens of the lines that all prompts begin with.")


_GENERAL = {
    "input_len": {"random": "random_input_len", "sonnet": "sonnet_input_len"},
    "output_len": {name: f"{name}_output_len" for name in DATASETS},
}


def load_requests(args: argparse.Namespace, tokenizer: Tokenizer, num_further: int = 0) -> list[SampleRequest]:
    """The requests that the command line asks for, and so many more. Raises ValueError for what cannot be used."""
    for general, specific in _GENERAL.items():
        if (value := getattr(args, general)) is None:
            continue
        if args.dataset_name not in specific:
            raise ValueError(f"--{general.replace('_', '-')} means nothing for {args.dataset_name}")
        setattr(args, specific[args.dataset_name], value)
    _check(args)
    wanted = argparse.Namespace(**{**vars(args), "num_prompts": args.num_prompts + num_further})
    return DATASETS[args.dataset_name](wanted, tokenizer, np.random.default_rng(args.seed))


def _check(args: argparse.Namespace) -> None:
    least = {"random_prefix_len": 0, "prefix_repetition_suffix_len": 0, "sonnet_prefix_len": 0, "num_prompts": 1}
    lengths = [
        name for name in vars(args) if name.endswith(("_input_len", "_output_len", "_prefix_len", "_suffix_len"))
    ]
    for name in [*lengths, "num_prompts", "prefix_repetition_num_prefixes"]:
        value = getattr(args, name)
        if value is not None and value < least.get(name, 1):
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least.get(name, 1)}, not {value}")
    if not 0 <= args.random_range_ratio < 1:
        raise ValueError(f"--random-range-ratio must be at least 0 and below 1, not {args.random_range_ratio}")
