"""Rules by which GGUF tokenizers split text: pieces worked out by hand from the originals' regular expressions."""

from __future__ import annotations

import pytest

from tests.checkpoint.test_tokenizer import byte_level_metadata
from vllm.checkpoint.gguf_splits import _RULES, pre_tokenizer
from vllm.checkpoint.gguf_tokenizer import adds_bos, build_gguf_tokenizer


def pieces(rule: str, text: str) -> list[str]:
    return [text[start:end] for _, (start, end) in pre_tokenizer(rule).pre_tokenize_str(text)]


@pytest.mark.parametrize("rule", _RULES)
def test_pieces_are_the_text(rule: str) -> None:
    for text in ("Hello world's 12345 x2\n\n  y\t…!", "日本語と한국어 и русский", " a  \r\n b ", "🙂 é e\u0301 DeFgHi"):
        assert "".join(pieces(rule, text)) == text


@pytest.mark.parametrize(
    ("rule", "text", "expected"),
    [
        ("deepseek-coder", "def f1(x):\n\n  y", ["def", " f", "1", "(", "x", "):", "\n", "\n", " ", " y"]),
        ("deepseek-coder", "it's 123", ["it", "'", "s", " ", "1", "2", "3"]),
        ("deepseek-coder", "a=b+c", ["a", "=", "b", "+", "c"]),
        ("deepseek-coder", "你好，世界", ["你好", "，", "世界"]),
        ("deepseek-llm", "Hi, year 2024!", ["Hi", ",", " year", " ", "2", "0", "2", "4", "!"]),
        ("deepseek-llm", "a\n b  ", ["a", "\n", " b", "  "]),
        ("deepseek-llm", "x+yա你好", ["x", "+", "y", "ա", "你好"]),
        ("deepseek-v3", "abc12345 你好 x", ["abc", "123", "45", " ", "你好", " x"]),
        ("deepseek-v3", "/path a\n", ["/path", " a", "\n"]),
        ("qwen35", "e\u0301t 12", ["e\u0301t", " ", "1", "2"]),
        ("qwen2", "e\u0301t", ["e", "\u0301t"]),
        ("seed-coder", "a;\n\nb 12", ["a", ";", "\n\n", "b", " ", "1", "2"]),
        ("llama-bpe", "a;\n\nb 1234", ["a", ";\n\n", "b", " ", "123", "4"]),
        ("midm-2.0", "a;\n\nb 1234", ["a", ";\n\n", "b", " ", "123", "4"]),
        ("gpt-4o", "helloWorld don't 1234", ["hello", "World", " don't", " ", "123", "4"]),
        ("tekken", "helloWorld don't 12", ["hello", "World", " don", "'t", " ", "1", "2"]),
        ("minicpm5", "abc1234 x", ["abc", "123", "4", " x"]),
        ("minerva-7b", "a 12", ["a", " ", "1", "2"]),
        ("trillion", "a 12", ["a", " 12"]),
        ("viking", "a,b c12", ["a", ",", "b", " c", "1", "2"]),
    ],
)
def test_pieces(rule: str, text: str, expected: list[str]) -> None:  # M11
    assert pieces(rule, text) == expected


def test_merges_of_tokens_that_are_not_there_are_left_out(caplog: pytest.LogCaptureFixture) -> None:  # M11
    metadata = byte_level_metadata("gpt-2")
    with_more = metadata | {"tokenizer.ggml.merges": [*metadata["tokenizer.ggml.merges"], "zz yy", "t zz"]}
    text = "The quick brown fox"
    assert build_gguf_tokenizer(with_more).encode(text).ids == build_gguf_tokenizer(metadata).encode(text).ids
    assert "2 of the file's" in caplog.text
    assert "such as 'zz' with 'yy': its vocabulary lacks the tokens" in caplog.text


@pytest.mark.parametrize(("pre", "expected"), [("tekken", True), ("falcon3", True), ("qwen2", False)])
def test_whether_text_begins_with_bos(pre: str, expected: bool) -> None:
    assert adds_bos({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre}) is expected
