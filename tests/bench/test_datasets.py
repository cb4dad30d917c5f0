"""Every dataset gives prompts of the lengths it promises, and the same ones for the same seed."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import pytest

from vllm.engine.text.tokenizer import Tokenizer
from vllm.entrypoints.bench.datasets import SampleRequest, add_dataset_args, load_requests, own_text


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_llama: Path) -> Tokenizer:
    return Tokenizer.load(str(tiny_llama))


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2: Path) -> Tokenizer:
    return Tokenizer.load(str(smollm2))


@pytest.fixture(params=["tiny_tokenizer", "smollm2_tokenizer"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue(request.param)


def load(tokenizer: Tokenizer, name: str, *words: str) -> list[SampleRequest]:
    parser = argparse.ArgumentParser()
    add_dataset_args(parser)
    return load_requests(parser.parse_args(["--dataset-name", name, "--num-prompts", "12", *words]), tokenizer)


def assert_texts_are_their_tokens(tokenizer: Tokenizer, requests: list[SampleRequest]) -> None:
    for request in requests:
        assert tokenizer.encode(request.prompt) == request.prompt_token_ids


def test_random_lengths_are_exact(tokenizer: Tokenizer) -> None:
    requests = load(tokenizer, "random", "--random-input-len", "37", "--random-output-len", "5")
    assert_texts_are_their_tokens(tokenizer, requests)
    assert {(request.prompt_len, request.output_len) for request in requests} == {(37, 5)}
    assert len({request.prompt for request in requests}) == 12


def test_random_range_and_shared_prefix(tokenizer: Tokenizer) -> None:
    words = ["--input-len", "40", "--output-len", "10", "--random-range-ratio", "0.5", "--random-prefix-len", "8"]
    requests = load(tokenizer, "random", *words, "--num-prompts", "60")
    assert_texts_are_their_tokens(tokenizer, requests)
    assert {request.prompt_len for request in requests} <= set(range(28, 69))
    assert {request.output_len for request in requests} <= set(range(5, 16))
    assert len({request.prompt_len for request in requests}) > 10
    assert len({tuple(request.prompt_token_ids[:8]) for request in requests}) == 1


def test_prefix_repetition(tokenizer: Tokenizer) -> None:
    requests = load(
        tokenizer, "prefix_repetition", "--prefix-repetition-prefix-len", "24", "--prefix-repetition-suffix-len", "9",
        "--prefix-repetition-num-prefixes", "4", "--prefix-repetition-output-len", "3",
    )  # fmt: skip
    assert_texts_are_their_tokens(tokenizer, requests)
    assert {(request.prompt_len, request.output_len) for request in requests} == {(33, 3)}
    prefixes = Counter(tuple(request.prompt_token_ids[:24]) for request in requests)
    assert sorted(prefixes.values()) == [3, 3, 3, 3]
    assert len({request.prompt for request in requests}) == 12


def test_special_tokens_are_part_of_the_length(tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tiny_tokenizer.encode
    monkeypatch.setattr(
        tiny_tokenizer,
        "encode",
        lambda text, add_special_tokens=True: [0] * add_special_tokens + plain(text, add_special_tokens=False),
    )
    for name in ("random", "prefix_repetition"):
        requests = load(tiny_tokenizer, name, "--random-input-len", "20", "--prefix-repetition-prefix-len", "11",
                        "--prefix-repetition-suffix-len", "9")  # fmt: skip
        assert {request.prompt_len for request in requests} == {20}


def test_sonnet(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "poem.txt"
    file.write_text("\n".join(f"line {i} of the poem" for i in range(40)) + "\n\n")
    for words in (["--dataset-path", str(file)], []):
        requests = load(
            tokenizer, "sonnet", *words,
            "--sonnet-input-len", "700", "--sonnet-prefix-len", "300", "--sonnet-output-len", "6",
        )  # fmt: skip
        lines = set(file.read_text().splitlines() if words else own_text())
        assert {request.output_len for request in requests} == {6}
        assert all(400 < request.prompt_len <= 700 for request in requests)
        texts = [request.prompt.splitlines()[1:] for request in requests]
        assert all(set(text) <= lines for text in texts)
        shared = next(i for i in range(100) if len({text[i] for text in texts}) > 1)
        assert shared >= 1
        assert len({request.prompt for request in requests}) == 12


def conversation(question: str, answer: str | None) -> dict[str, object]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": "x", "conversations": turns if answer is not None else turns[:1]}


def test_sharegpt(tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = [
        conversation(f"What is the number {i} good for, if anything?", "It is " + "very " * i) for i in range(8, 13)
    ]
    useless = [
        conversation("?", "Short question."),
        conversation("What is this here now?", "x"),
        conversation("No answer at all to this", None),
        conversation("word " * 3000, "It is too long."),
    ]
    file = tmp_path / "talks.json"
    file.write_text(json.dumps([*useless, *good]))
    requests = load(tokenizer, "sharegpt", "--dataset-path", str(file))
    assert "5 requests: they are repeated" in capsys.readouterr().err
    asked = {str(each["conversations"][0]["value"]): str(each["conversations"][1]["value"]) for each in good}  # type: ignore[index]
    assert {request.prompt for request in requests} == set(asked)
    for request in requests:
        assert request.output_len == len(tokenizer.encode(asked[request.prompt]))
    fixed = load(tokenizer, "sharegpt", "--dataset-path", str(file), "--output-len", "9", "--num-prompts", "3")
    assert [request.output_len for request in fixed] == [9, 9, 9]


@pytest.mark.parametrize("name", ["random", "prefix_repetition", "sonnet"])
def test_the_seed_decides(tiny_tokenizer: Tokenizer, name: str) -> None:
    first, again, other = (load(tiny_tokenizer, name, "--seed", seed) for seed in "112")
    assert first == again and first != other


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sharegpt"], "--dataset-path"),
        (["random", "--input-len", "0"], "--random-input-len must be at least 1"),
        (["random", "--random-range-ratio", "1"], "--random-range-ratio"),
        (["random", "--num-prompts", "0"], "--num-prompts"),
        (["prefix_repetition", "--input-len", "5"], "--input-len means nothing"),
        (["prefix_repetition", "--prefix-repetition-num-prefixes", "0"], "--prefix-repetition-num-prefixes"),
        (["sonnet", "--sonnet-input-len", "2"], "no room"),
    ],
)
def test_what_cannot_be_asked(tiny_tokenizer: Tokenizer, words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(tiny_tokenizer, *words)


def test_files_that_are_no_conversations(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    for text in ("[", "3", '[{"turns": []}]', "[]", '[{"conversations": []}]'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match=r"bad\.json"):
            load(tiny_tokenizer, "sharegpt", "--dataset-path", str(tmp_path / "bad.json"))
