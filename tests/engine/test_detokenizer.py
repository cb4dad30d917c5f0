"""Incremental text: no character breaks, pieces join to the whole, stop strings are found wherever they lie."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, pre_tokenizers

from tests.engine import backends
from vllm.checkpoint.tokenizer import TokenizerData, load_tokenizer
from vllm.engine.text import tokenizer as engine_tokenizer
from vllm.engine.text.detokenizer import Detokenizer, incremental_decoder
from vllm.sampling_params import SamplingParams

TEXTS = ["Hello, world!", "日本語のテキスト、漢字", "😀👩‍👩‍👧‍👦🏳️‍🌈 emoji", "naïve café – “quotes”", "a\n\tb   c", "ﷺ𒐫"]


@pytest.fixture(scope="module")
def smollm2_tokenizer(smollm2: Path) -> engine_tokenizer.Tokenizer:
    return engine_tokenizer.Tokenizer(load_tokenizer(smollm2))


@pytest.fixture(scope="module")
def byte_fallback() -> engine_tokenizer.Tokenizer:
    return backends.byte_fallback()


@pytest.fixture(scope="module")
def word_piece() -> engine_tokenizer.Tokenizer:
    return backends.word_piece()


def _pieces(tokenizer: engine_tokenizer.Tokenizer, ids: list[int], **fields) -> list[str]:
    detokenizer = Detokenizer(tokenizer, SamplingParams(**fields))
    pieces = []
    for i, token_id in enumerate(ids, 1):
        detokenizer.update([token_id], finished=i == len(ids))
        pieces.append(detokenizer.take())
    return pieces


@settings(max_examples=300)
@given(data=st.data())
def test_pieces_join_to_the_decoded_whole(smollm2_tokenizer, data):
    ids = data.draw(st.lists(st.integers(0, len(smollm2_tokenizer) - 1), min_size=1, max_size=40))
    skip = data.draw(st.booleans())
    joined = "".join(_pieces(smollm2_tokenizer, ids, skip_special_tokens=skip))
    assert joined == smollm2_tokenizer.decode(ids, skip_special_tokens=skip)


@settings(max_examples=200)
@given(st.lists(st.integers(0, 255), min_size=1, max_size=30))
def test_single_bytes_join_to_the_decoded_whole(smollm2_tokenizer, values):
    """Tokens of one byte each: any broken UTF-8."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = [smollm2_tokenizer.convert_tokens_to_ids(alphabet[value]) for value in values]
    assert "".join(_pieces(smollm2_tokenizer, ids)) == smollm2_tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("text", TEXTS)
def test_no_piece_holds_a_broken_character(smollm2_tokenizer, text):
    pieces = _pieces(smollm2_tokenizer, smollm2_tokenizer.encode(text))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


@settings(max_examples=300)
@given(st.data())
def test_byte_fallback_pieces_join_to_what_the_backend_decodes(byte_fallback, data):
    """An output follows a prompt, so it is decoded behind one token of it. The backend replaces whole runs of bytes
    that are not UTF-8; such outputs are compared in the next test."""
    ids = data.draw(st.lists(st.integers(0, len(byte_fallback) - 1), min_size=1, max_size=30))
    anchor = byte_fallback.convert_tokens_to_ids("x")
    whole = byte_fallback.decode([anchor, *ids], skip_special_tokens=True)
    joined = "".join(_pieces(byte_fallback, ids))
    if "\ufffd" not in whole:
        assert "x" + joined == whole


@settings(max_examples=200)
@given(st.lists(st.one_of(st.integers(3, 258), st.integers(259, 290)), min_size=1, max_size=30))
def test_byte_fallback_keeps_the_characters_beside_broken_ones(byte_fallback, ids):
    data = b""
    for token in byte_fallback.convert_ids_to_tokens(ids):
        data += bytes([int(token[3:5], 16)]) if token.startswith("<0x") else token.replace("▁", " ").encode()
    assert "".join(_pieces(byte_fallback, ids)) == data.decode("utf-8", "replace")


@pytest.mark.parametrize("text", TEXTS)
def test_byte_fallback_characters_come_whole_and_as_soon_as_they_are_complete(byte_fallback, text):
    ids = [3 + byte for byte in text.encode()]
    pieces = _pieces(byte_fallback, ids)
    assert "".join(pieces) == text
    sizes = [len(piece.encode()) for piece in pieces]
    done = 0
    for i, size in enumerate(sizes, 1):
        done += size
        assert text.encode()[:i].decode("utf-8", "ignore") == text.encode()[:done].decode()


@settings(max_examples=100)
@given(st.lists(st.integers(2, 9), min_size=1, max_size=12))
def test_other_decoders_go_through_the_backend(word_piece, ids):
    assert "".join(_pieces(word_piece, ids, skip_special_tokens=False)) == word_piece.decode(ids)


def test_without_a_decoder_tokens_are_joined_by_spaces():
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1, "<s>": 2}, unk_token="a"))
    backend.add_special_tokens([AddedToken("<s>", special=True)])
    tokenizer = engine_tokenizer.Tokenizer(TokenizerData(backend))
    assert "".join(_pieces(tokenizer, [0, 1, 0])) == "a b a"
    spaced = {"skip_special_tokens": False, "spaces_between_special_tokens": True}
    assert "".join(_pieces(tokenizer, [0, 2, 2], **spaced)) == "a <s> <s>"
    assert "".join(_pieces(tokenizer, [0, 2, 2], **{**spaced, "spaces_between_special_tokens": False})) == "a <s><s>"


def test_ids_without_a_token_give_no_text(smollm2_tokenizer):
    word = smollm2_tokenizer.encode(" word")
    assert "".join(_pieces(smollm2_tokenizer, [10**6, *word, 10**6])) == " word"


def test_a_window_of_replacement_characters_does_not_grow(word_piece):
    """A model that emits nothing but the replacement character still streams."""
    backend = tokenizers.Tokenizer(models.WordLevel({"\ufffd": 0, "a": 1}, unk_token="a"))
    tokenizer = engine_tokenizer.Tokenizer(TokenizerData(backend))
    decoder = incremental_decoder(tokenizer)
    pieces = [decoder.push(0) for _ in range(200)]
    assert sum(map(len, pieces)) > 300
    assert "".join(pieces) + decoder.flush() == tokenizer.decode([0] * 200)


# Stop strings.


def _expected(text: str, stop: list[str], include: bool) -> tuple[str, str | None]:
    """By definition: the text is cut at the stop string that is complete first."""
    for end in range(1, len(text) + 1):
        matches = [(end - len(each), each) for each in stop if text[:end].endswith(each)]
        if matches:
            start, found = min(matches)
            return text[: end if include else start], found
    return text, None


@settings(max_examples=300)
@given(
    st.text("abc", min_size=1, max_size=30),
    st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=4),
    st.booleans(),
    st.lists(st.integers(1, 4), min_size=30, max_size=30),
)
def test_stop_strings_cut_where_they_are_first_complete(byte_fallback, text, stop, include, steps):
    """However many tokens a step brings."""
    ids = [byte_fallback.convert_tokens_to_ids(letter) for letter in text]
    detokenizer = Detokenizer(byte_fallback, SamplingParams(stop=stop, include_stop_str_in_output=include))
    pieces, taken = [], 0
    while taken < len(ids) and detokenizer.stop_reason is None:
        new = ids[taken : taken + steps[taken]]
        taken += detokenizer.update(new, finished=taken + len(new) == len(ids))
        pieces.append(detokenizer.take())
    expected, found = _expected(text, stop, include)
    assert "".join(pieces) == expected
    assert detokenizer.stop_reason == found
    if found is not None:
        assert taken == len(_expected(text, stop, True)[0])


def test_what_may_become_a_stop_string_is_held_back_and_given_back(byte_fallback):
    ids = [byte_fallback.convert_tokens_to_ids(letter) for letter in "xabyab"]
    assert _pieces(byte_fallback, ids, stop=["abc"]) == ["", "", "x", "a", "b", "yab"]


def test_min_tokens_come_before_any_stop_string(byte_fallback):
    ids = [byte_fallback.convert_tokens_to_ids(letter) for letter in "ababab"]
    detokenizer = Detokenizer(byte_fallback, SamplingParams(stop=["ab"], min_tokens=3))
    taken = detokenizer.update(ids)
    assert taken == 4
    assert detokenizer.text == "ab"


def test_the_text_of_a_stop_token_is_left_out_unless_wanted(byte_fallback):
    ids = [byte_fallback.convert_tokens_to_ids(token) for token in ("▁Hello", "▁world")]
    for include, expected in ((False, " Hello"), (True, " Hello world")):
        detokenizer = Detokenizer(byte_fallback, SamplingParams(include_stop_str_in_output=include))
        assert detokenizer.update(ids, finished=True, ends_in_stop_token=True) == 2
        assert detokenizer.text == expected


def test_no_text_without_detokenize(byte_fallback):
    assert _pieces(byte_fallback, [260, 261], detokenize=False) == ["", ""]
    assert Detokenizer(None, SamplingParams()).update([1, 2]) == 2
