"""A `tokenizers.Tokenizer` from the vocabulary that a GGUF file carries.

Two kinds of `tokenizer.ggml.model`:

    gpt2    byte-level BPE: tokens in GPT-2's byte alphabet, merges in order; `tokenizer.ggml.pre` names how text is
            split before merging.
    llama   SentencePiece BPE: tokens with scores; the pair whose union scores highest merges first; what the
            vocabulary lacks falls back to bytes. Text gets a space in front, also after a special token.

`tokenizer.ggml.token_type` says what a token is: control tokens are special, user-defined ones are matched whole.
"""

from __future__ import annotations

import difflib
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from vllm.checkpoint.errors import CheckpointError
from vllm.logger import init_logger

logger = init_logger(__name__)

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_SPACE = "▁"

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SYMBOLS_AND_SPACE = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_LLAMA3_SPLIT = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_SYMBOLS_AND_SPACE}"
_QWEN2_SPLIT = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}|{_SYMBOLS_AND_SPACE}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED_WORD = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_TEKKEN_SPLIT = rf"{_CASED_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"

_GPT2_NAMES = ("default", "gpt-2", "phi-2", "olmo", "mpt", "jais")
_DIGIT_NAMES = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone")
_SPLITS = {
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "smaug-bpe", "dbrx"), _LLAMA3_SPLIT),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), _QWEN2_SPLIT),
    "tekken": _TEKKEN_SPLIT,
}
_WHOLE_WORDS_FIRST = ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "tekken")
"""Pre-tokenizers whose words are looked up whole before any merging."""
_BOS_BY_DEFAULT = ("llama-bpe", "llama3", "llama-v3")


def build_gguf_tokenizer(metadata: dict[str, Any]) -> tokenizers.Tokenizer:
    """The tokenizer, without the rule for bos and eos. Raises CheckpointError for a kind that is not known."""
    model = metadata.get("tokenizer.ggml.model")
    builders = {"gpt2": _byte_level_bpe, "llama": _sentencepiece_bpe}
    if model not in builders:
        raise CheckpointError(
            f"the file's tokenizer is of kind {model!r}, supported are {', '.join(builders)}; pass the model's "
            "original tokenizer (--tokenizer DIR)"
        )
    tokens = metadata.get("tokenizer.ggml.tokens")
    types = metadata.get("tokenizer.ggml.token_type") or [_NORMAL] * len(tokens or [])
    if not isinstance(tokens, list) or len(types) != len(tokens) or not all(isinstance(t, str) for t in tokens):
        raise CheckpointError("the file's tokenizer has no usable list of tokens and their types")
    tokenizer = builders[model](metadata, tokens, types)
    _add_tokens(tokenizer, tokens, types)
    return tokenizer


def adds_bos(metadata: dict[str, Any]) -> bool:
    """Whether text is to begin with bos; where the file does not say, what its kind of tokenizer does."""
    is_default = (
        metadata.get("tokenizer.ggml.model") == "llama" or metadata.get("tokenizer.ggml.pre") in _BOS_BY_DEFAULT
    )
    return bool(metadata.get("tokenizer.ggml.add_bos_token", is_default))


def _byte_level_bpe(metadata: dict[str, Any], tokens: list[str], types: list[int]) -> tokenizers.Tokenizer:
    merges = metadata.get("tokenizer.ggml.merges")
    if merges is None:
        raise CheckpointError("the file's tokenizer has no merges (tokenizer.ggml.merges)")
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    pre = metadata.get("tokenizer.ggml.pre")
    if pre is None:
        logger.warning("the GGUF file does not say how text is split before merging; splitting as GPT-2 does")
    vocab = {token: index for index, token in enumerate(tokens)}
    try:
        model = models.BPE(vocab=vocab, merges=pairs, ignore_merges=pre in _WHOLE_WORDS_FIRST)
    except Exception as error:  # the library raises plain Exception for merges that the vocabulary lacks
        raise CheckpointError(f"the file's tokenizer is inconsistent: {error}") from None
    tokenizer = tokenizers.Tokenizer(model)
    if pre in ("qwen2", "deepseek-r1-qwen"):
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _pre_tokenizer(pre or "default")
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer:
    if name in _GPT2_NAMES:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name in _DIGIT_NAMES:
        return pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    if name in _SPLITS:
        split = pre_tokenizers.Split(Regex(_SPLITS[name]), behavior="isolated")
        return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    known = [*_GPT2_NAMES, *_DIGIT_NAMES, *_SPLITS]
    nearest = difflib.get_close_matches(name, known, n=1)
    raise CheckpointError(
        f"the file's tokenizer splits text by the rule {name!r}, which is not known"
        f"{f' (nearest: {nearest[0]})' if nearest else ''}; known: {', '.join(sorted(known))}. "
        "Pass the model's original tokenizer (--tokenizer DIR)"
    )


def _sentencepiece_bpe(metadata: dict[str, Any], tokens: list[str], types: list[int]) -> tokenizers.Tokenizer:
    scores = metadata.get("tokenizer.ggml.scores")
    if scores is None or len(scores) != len(tokens):
        raise CheckpointError("the file's tokenizer has no usable scores (tokenizer.ggml.scores)")
    vocab = {token: index for index, token in enumerate(tokens)}
    mergeable = {tokens[i]: scores[i] for i in range(len(tokens)) if types[i] in (_NORMAL, _USER_DEFINED)}
    unknown = metadata.get("tokenizer.ggml.unknown_token_id")
    tokenizer = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=_merges_by_score(mergeable),
            unk_token=tokens[unknown] if unknown is not None and unknown < len(tokens) else None,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    has_prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    steps: list[normalizers.Normalizer] = [normalizers.Replace(" ", _SPACE)]
    decoding: list[decoders.Decoder] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if has_prefix:
        steps.insert(0, normalizers.Prepend(_SPACE))
        decoding.append(decoders.Strip(content=" ", left=1))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Sequence(decoding)
    return tokenizer


def _merges_by_score(scores: dict[str, float]) -> list[tuple[str, str]]:
    """Every way to cut a token into two others, tokens with the highest score first."""
    by_score = sorted(scores, key=lambda token: -scores[token])
    cuts = ((token[:at], token[at:]) for token in by_score for at in range(1, len(token)))
    return [(left, right) for left, right in cuts if left in scores and right in scores]


def _add_tokens(tokenizer: tokenizers.Tokenizer, tokens: list[str], types: list[int]) -> None:
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
    user_defined = [token for token, kind in zip(tokens, types, strict=True) if kind == _USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in user_defined])
