r"""How byte-level BPE tokenizers split text before merging, by the names that `tokenizer.ggml.pre` has for it.

A rule is a chain of pre-tokenizers, as the tokenizer.json of the models that it is named after has it. Which name means
which rule is what llama.cpp's `llama-vocab.cpp` says. A regular expression cuts text into its matches and what lies
between them; those that follow cut the pieces further.
"""

from __future__ import annotations

import difflib

from tokenizers import Regex, normalizers, pre_tokenizers

from vllm.checkpoint.errors import CheckpointError

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_SPACE}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}|{_SYMBOLS}|{_SPACE}"
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACE}"
)
_SEED_CODER = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACE}"
_MINICPM5 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}+|{_SYMBOLS}|{_SPACE}"

_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LOWER_WORD, _UPPER_WORD = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_PATH_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_TEKKEN = rf"{_LOWER_WORD}|{_UPPER_WORD}|\p{{N}}|{_PATH_SYMBOLS}|{_SPACE}"
_GPT4O = rf"{_LOWER_WORD}{_CONTRACTIONS}?|{_UPPER_WORD}{_CONTRACTIONS}?|\p{{N}}{{1,3}}|{_PATH_SYMBOLS}|{_SPACE}"

_LINE_END = r"[\r\n]"
_CJK = r"[\x{800}-\x{9FA5}\x{AC00}-\x{D7FF}]+"
_HAN_AND_KANA = r"[\x{4E00}-\x{9FA5}\x{3040}-\x{30FF}]+"
_DEEPSEEK3_WORDS = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACE}"
)
_CASED_LETTERS = """
    41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376-377 37B-37D 37F 386 388-38A 38C
    38E-3A1 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B
    1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4
    1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113
    2115 2119-211D 2124 2126 2128 212A-212D 212F-2134 2139 213C-213F 2145-2149 214E 2183-2184 2C00-2C7B
    2C7E-2CE4 2CEB-2CEE 2CF2-2CF3 A640-A66D A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06
    FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF
    1E900-1E943"""
"""The letters of DeepSeek LLM's rule, as ranges of code points: cased ones, but not all of them."""
_DEEPSEEK_LETTERS = "".join(
    "-".join(rf"\x{{{bound}}}" for bound in letters.split("-")) for letters in _CASED_LETTERS.split()
)
_DEEPSEEK_SYMBOLS = r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+"
_VIKING_WORDS = r" ?[^(\s|.,!?\x{2026}\x{3002}\x{FF0C}\x{3001}\x{964}\x{6D4}\x{60C})]+"

_DIGITS = pre_tokenizers.Digits(individual_digits=True)
_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
_GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)


def _split(*expressions: str) -> list[pre_tokenizers.PreTokenizer]:
    return [pre_tokenizers.Split(Regex(each), behavior="isolated") for each in expressions]


_LLAMA3_NAMES = (
    "llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"
)  # fmt: skip
_GPT2_NAMES = (
    "default", "gpt-2", "phi-2", "olmo", "mpt", "jais", "gigachat", "a.x-4.0", "mellum", "trillion", "granite-docling",
    "exaone4",
)  # fmt: skip
_DIGIT_NAMES = (
    "smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"
)  # fmt: skip
_QWEN2_NAMES = (
    "qwen2", "deepseek-r1-qwen", "megrez", "kormo", "f2llmv2", "stablelm2", "hunyuan", "solar-open", "grok-2"
)  # fmt: skip
_Chain = tuple[pre_tokenizers.PreTokenizer, ...]
_RULES: dict[str, _Chain] = {
    **dict.fromkeys(_GPT2_NAMES, (_GPT2,)),
    **dict.fromkeys(_DIGIT_NAMES, (_DIGITS, _GPT2)),
    **dict.fromkeys((*_LLAMA3_NAMES, "smaug-bpe", "dbrx"), (*_split(_LLAMA3), _BYTES)),
    **dict.fromkeys(_QWEN2_NAMES, (*_split(_QWEN2), _BYTES)),
    "qwen35": (*_split(_QWEN35), _BYTES),
    "seed-coder": (*_split(_SEED_CODER), _BYTES),
    "minicpm5": (*_split(r"\p{N}{1,3}", _MINICPM5), _BYTES),
    "tekken": (*_split(_TEKKEN), _BYTES),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), (*_split(_GPT4O), _BYTES)),
    "deepseek-coder": (*_split(_LINE_END, r"\s?\p{L}+", r"\s?\p{P}+", _CJK), _DIGITS, _BYTES),
    "deepseek-llm": (
        *_split(_LINE_END, rf"\s?[{_DEEPSEEK_LETTERS}]+", _DEEPSEEK_SYMBOLS, r"\s+$", _CJK),
        _DIGITS,
        _BYTES,
    ),
    "deepseek-v3": (*_split(r"\p{N}{1,3}", _HAN_AND_KANA, _DEEPSEEK3_WORDS), _BYTES),
    "viking": (*_split(_VIKING_WORDS, r"\p{N}"), _BYTES),
}
_WHOLE_WORDS_FIRST = frozenset({*_LLAMA3_NAMES, "tekken", "minicpm5"})
_BOS_BY_DEFAULT = frozenset({*_LLAMA3_NAMES, "tekken"})
_NFC = frozenset({"qwen2", "deepseek-r1-qwen"})


def pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer:
    """The rule of a name. Raises CheckpointError for one that is not known, listing those that are."""
    if name in _RULES:
        chain = _RULES[name]
        return chain[0] if len(chain) == 1 else pre_tokenizers.Sequence(list(chain))
    nearest = difflib.get_close_matches(name, _RULES, n=1)
    raise CheckpointError(
        f"the file's tokenizer splits text by the rule {name!r}, which is not known"
        f"{f' (nearest: {nearest[0]})' if nearest else ''}; known: {', '.join(sorted(_RULES))}. "
        "Pass the model's original tokenizer (--tokenizer DIR)"
    )


def normalizer(name: str) -> normalizers.Normalizer | None:
    """What text goes through before it is split, if anything."""
    return normalizers.NFC() if name in _NFC else None


def looks_words_up_whole(name: str) -> bool:
    """Whether a word that the vocabulary has is taken as it is, whatever the merges would make of it."""
    return name in _WHOLE_WORDS_FIRST


def begins_with_bos(name: str) -> bool:
    """Whether text begins with the BOS token where the file does not say."""
    return name in _BOS_BY_DEFAULT
