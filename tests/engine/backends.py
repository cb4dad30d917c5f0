"""Tokenizers of every kind of decoder, small enough to be enumerated."""

from __future__ import annotations

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers

from vllm.checkpoint.tokenizer import TokenizerData
from vllm.engine.text.tokenizer import Tokenizer

SPECIAL = ("<unk>", "<s>", "</s>")


def byte_level() -> Tokenizer:
    """Byte-level BPE that adds a BOS; its spans leave out the spaces that tokens begin with."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(["the quick fox, the lazy dog and the 日本 of the 😀"], trainer)
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    bos = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))])
    backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), bos])
    return Tokenizer(TokenizerData(backend))


def byte_fallback() -> Tokenizer:
    """Pieces of words with U+2581 for the space, and a token for each byte, as sentencepiece models have."""
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "▁Hello", "Hello", "▁world", "lo", "本", "▁日", "!", "▁▁", "é", *"abcdefghijklmnopqrstuvwxyz"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    backend = tokenizers.Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    return Tokenizer(TokenizerData(backend))


def word_piece() -> Tokenizer:
    """The text of a token depends on its neighbours."""
    words = ["[UNK]", "[CLS]", "play", "##ing", "##ed", "the", "un", "##able", ".", "x"]
    backend = tokenizers.Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece(cleanup=False)
    backend.add_special_tokens([AddedToken("[CLS]", special=True)])
    return Tokenizer(TokenizerData(backend))
