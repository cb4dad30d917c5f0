"""A `tokenizers.Tokenizer` from the vocabulary that a GGUF file carries.

Two kinds of `tokenizer.ggml.model`:

    gpt2    byte-level BPE: tokens in GPT-2's byte alphabet, merges in order; `tokenizer.ggml.pre` names how text is
            split before merging.
    llama   SentencePiece BPE: tokens with scores; the pair whose union scores highest merges first; what the
            vocabulary lacks falls back to bytes. Text gets a space in front, also after a special token.

`tokenizer.ggml.token_type` says what a token is: control tokens are special, user-defined ones are matched whole.
"""

from __future__ import annotations

from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers

from vllm.checkpoint.errors import CheckpointError
from vllm.checkpoint.gguf_splits import begins_with_bos, looks_words_up_whole, normalizer, pre_tokenizer
from vllm.logger import init_logger

logger = init_logger(__name__)

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_SPACE = "▁"


def build_gguf_tokenizer(metadata: dict[str, Any]) -> tokenizers.Tokenizer:
    """The tokenizer, without the rule for bos and eos. Raises CheckpointError for a kind that is not known."""
    model = str(metadata.get("tokenizer.ggml.model"))
    builders = {"gpt2": _byte_level_bpe, "llama": _sentencepiece_bpe}
    if model not in builders:
        raise CheckpointError(
            f"the file's tokenizer is of kind {model!r}, supported are {', '.join(builders)}; pass the model's "
            "original tokenizer (--tokenizer DIR)"
        )
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not tokens or not _is_list_of(tokens, str):
        raise CheckpointError("the file's tokenizer has no usable list of tokens (tokenizer.ggml.tokens)")
    types = metadata.get("tokenizer.ggml.token_type") or [_NORMAL] * len(tokens)
    if not _is_list_of(types, int, len(tokens)):
        raise CheckpointError("the file's tokenizer has no usable types of its tokens (tokenizer.ggml.token_type)")
    tokenizer = builders[model](metadata, tokens, types)
    _add_tokens(tokenizer, tokens, types)
    return tokenizer


def adds_bos(metadata: dict[str, Any]) -> bool:
    """Whether text is to begin with bos; where the file does not say, what its kind of tokenizer does."""
    is_default = metadata.get("tokenizer.ggml.model") == "llama" or begins_with_bos(
        str(metadata.get("tokenizer.ggml.pre"))
    )
    return bool(metadata.get("tokenizer.ggml.add_bos_token", is_default))


def token_at(metadata: dict[str, Any], name: str) -> str | None:
    """The token that `tokenizer.ggml.<name>_token_id` names; None without that key, or for an id of no token.

    Raises CheckpointError for a value that is not an id.
    """
    index, tokens = metadata.get(f"tokenizer.ggml.{name}_token_id"), metadata["tokenizer.ggml.tokens"]
    if index is None:
        return None
    if type(index) is not int or index < 0:
        raise CheckpointError(f"tokenizer.ggml.{name}_token_id is {index!r}, expected a token id")
    return str(tokens[index]) if index < len(tokens) else None


def _is_list_of(values: Any, kind: type | tuple[type, ...], length: int | None = None) -> bool:
    return isinstance(values, list) and length in (None, len(values)) and all(isinstance(v, kind) for v in values)


def _byte_level_bpe(metadata: dict[str, Any], tokens: list[str], types: list[int]) -> tokenizers.Tokenizer:
    merges = metadata.get("tokenizer.ggml.merges")
    if merges is None or not _is_list_of(merges, str):
        raise CheckpointError("the file's tokenizer has no usable list of merges (tokenizer.ggml.merges)")
    pre = metadata.get("tokenizer.ggml.pre")
    if pre is None:
        logger.warning("the GGUF file does not say how text is split before merging; splitting as GPT-2 does")
    pre = "default" if pre is None else str(pre)
    vocab = {token: index for index, token in enumerate(tokens)}
    pairs = _known_pairs(merges, vocab)
    try:
        model = models.BPE(vocab=vocab, merges=pairs, ignore_merges=looks_words_up_whole(pre))
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"the file's tokenizer is inconsistent: {error}") from None
    tokenizer = tokenizers.Tokenizer(model)
    if (normal_form := normalizer(pre)) is not None:
        tokenizer.normalizer = normal_form
    tokenizer.pre_tokenizer = pre_tokenizer(pre)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _known_pairs(merges: list[str], vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Merges as pairs, less those of tokens that the vocabulary lacks: what they would make cannot be written."""
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    known = [pair for pair in pairs if pair[0] in vocab and pair[1] in vocab and "".join(pair) in vocab]
    if len(known) < len(pairs):
        first = next(pair for pair in pairs if not (pair[0] in vocab and pair[1] in vocab and "".join(pair) in vocab))
        logger.warning(
            "%d of the file's %d merges are left out, such as %r with %r: its vocabulary lacks the tokens",
            len(pairs) - len(known),
            len(pairs),
            *first,
        )
    return known


def _sentencepiece_bpe(metadata: dict[str, Any], tokens: list[str], types: list[int]) -> tokenizers.Tokenizer:
    scores = metadata.get("tokenizer.ggml.scores")
    if scores is None or not _is_list_of(scores, (int, float), len(tokens)):
        raise CheckpointError("the file's tokenizer has no usable scores (tokenizer.ggml.scores)")
    vocab = {token: index for index, token in enumerate(tokens)}
    mergeable = {tokens[i]: scores[i] for i in range(len(tokens)) if types[i] in (_NORMAL, _USER_DEFINED)}
    tokenizer = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=_merges_by_score(mergeable),
            unk_token=token_at(metadata, "unknown"),
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
