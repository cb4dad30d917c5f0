"""Tokenizers: out of GGUF metadata as transformers and SentencePiece have them, from directories as AutoTokenizer."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, processors, trainers

from tests.checkpoint.gguf_files import write_gguf
from tests.tiny import SPECIAL_TOKENS, TEXT
from vllm.checkpoint import CheckpointError, open_checkpoint
from vllm.checkpoint.gguf_tokenizer import adds_bos, build_gguf_tokenizer
from vllm.checkpoint.tokenizer import load_tokenizer
from vllm.engine.text.tokenizer import Tokenizer
from vllm.exceptions import VLLMValidationError

TRICKY = [
    "",
    " ",
    "Hello world",
    "  two spaces  and   three   ",
    "\t\ttabs \n\n  newlines\r\n \n",
    "I'm you're they'll we'd it's I'VE",
    "year 2024 x1y22z333 3.14159",
    "日本語と한국어 и русский عربى ไทย",
    "🙂👩‍👩‍👧🏽🇩🇪",
    "é e\u0301 ﬁ İstanbul ß ſ",
    "def f(x):\n    return x**2  # ok?!...",
    "<|im_start|>user\nhi<|im_end|>\n",
    "a<|endoftext|>b <|im_end|> c",
    "<|im_startx|> <| im_end|>",
    "\u00a0\u2003\u200b\ufeff",
    "\x00\x01\x7f",
]


@pytest.mark.parametrize("text", TRICKY)
def test_smollm2_equals_transformers(text: str, smollm2: Path) -> None:
    ours, theirs = load_smollm2(smollm2)
    ids = ours.backend.encode(text).ids
    assert ids == theirs.encode(text)
    assert ours.backend.decode(ids, skip_special_tokens=False) == text
    assert ours.backend.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


_loaded: list[Any] = []


def load_smollm2(path: Path) -> Any:
    if not _loaded:
        theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        _loaded.extend((load_tokenizer(path), theirs))
    return _loaded


def test_smollm2_splits_digits_from_the_space_before(smollm2: Path) -> None:
    """As the model was trained; transformers splits a GGUF of this kind as plain GPT-2 would."""
    tokens = load_smollm2(smollm2)[0].backend.encode("a  12").tokens
    assert tokens == ["a", "ĠĠ", "1", "2"]


def test_smollm2_special_tokens(smollm2: Path, tmp_path: Path) -> None:
    ours, theirs = load_smollm2(smollm2)
    assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id) == (1, 2)
    assert (ours.pad_token_id, ours.unk_token_id) == (2, 0)
    assert ours.special_ids == frozenset(range(17))
    assert (ours.add_bos_token, ours.add_eos_token) == (False, False)
    assert ours.chat_template == theirs.chat_template

    ours.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.backend.to_str() == ours.backend.to_str()
    assert (again.special_tokens, again.chat_template) == (ours.special_tokens, ours.chat_template)


def byte_level_metadata(pre: str, **extra: Any) -> dict[str, Any]:
    """The vocabulary of a byte-level BPE trained on the spot."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=[*SPECIAL_TOKENS, "<think>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    state = json.loads(tokenizer.to_str())
    vocab = sorted(state["model"]["vocab"], key=state["model"]["vocab"].get)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": vocab,
        "tokenizer.ggml.token_type": [3, 3, 3, 4] + [1] * (len(vocab) - 4),
        "tokenizer.ggml.merges": [" ".join(merge) for merge in state["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 2,
        **extra,
    }


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "tekken"])
@pytest.mark.parametrize("add_bos", [False, True])
def test_byte_level_equals_transformers(pre: str, add_bos: bool, tiny_llama: Path, tmp_path: Path) -> None:
    metadata = byte_level_metadata(pre) | {"tokenizer.ggml.add_bos_token": add_bos}
    write_gguf(tmp_path / "m.gguf", tiny_llama, metadata=metadata)
    ours = load_tokenizer(open_checkpoint(tmp_path))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    assert ours.add_bos_token == add_bos
    for text in [*TRICKY, "<think>hm</think>"]:
        assert ours.backend.encode(text).ids == theirs.encode(text), text
        assert ours.backend.encode(text, add_special_tokens=False).ids == theirs.encode(text, add_special_tokens=False)


def test_qwen2_normalises_and_splits_as_its_own_tokenizer() -> None:
    metadata = byte_level_metadata("qwen2")
    ours = build_gguf_tokenizer(metadata)
    vocab = {token: index for index, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    theirs = transformers.Qwen2Tokenizer(vocab=vocab, merges=merges)
    theirs.add_special_tokens({"additional_special_tokens": SPECIAL_TOKENS})
    for text in TRICKY:
        assert ours.encode(text).ids == theirs.encode(text), text


def test_bos_by_default() -> None:
    assert adds_bos({"tokenizer.ggml.model": "llama"})
    assert adds_bos({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "llama-bpe"})
    assert not adds_bos({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm"})
    assert not adds_bos({"tokenizer.ggml.model": "llama", "tokenizer.ggml.add_bos_token": False})


@pytest.fixture(scope="module")
def sentence_piece() -> sentencepiece.SentencePieceProcessor:
    """A SentencePiece BPE model of Llama 2's making: byte fallback, no normalisation, a space in front."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=420,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        split_digits=True,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def sentence_piece_metadata(processor: sentencepiece.SentencePieceProcessor) -> dict[str, Any]:
    size = processor.get_piece_size()

    def kind(index: int) -> int:
        if processor.is_unknown(index):
            return 2
        if processor.is_control(index):
            return 3
        return 6 if processor.is_byte(index) else 1

    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [processor.id_to_piece(index) for index in range(size)],
        "tokenizer.ggml.scores": [processor.get_score(index) for index in range(size)],
        "tokenizer.ggml.token_type": [kind(index) for index in range(size)],
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


_sentence_piece_text = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from([*TEXT[0].split(), *TEXT[1].split(), " ", "  ", "\n", "é", "🙂", "12"]), max_size=12).map(
        " ".join
    ),
)


@settings(max_examples=300)
@given(text=_sentence_piece_text)
def test_sentence_piece_equals_the_library(text: str, sentence_piece: sentencepiece.SentencePieceProcessor) -> None:
    text = text.replace("▁", "_").replace("\x00", "")
    if not text:
        return
    if not _piece_tokenizer:
        _piece_tokenizer.append(build_gguf_tokenizer(sentence_piece_metadata(sentence_piece)))
    ids = _piece_tokenizer[0].encode(text).ids
    assert ids == sentence_piece.encode(text)
    assert _piece_tokenizer[0].decode(ids) == text


_piece_tokenizer: list[tokenizers.Tokenizer] = []


def test_sentence_piece_from_a_file(
    sentence_piece: sentencepiece.SentencePieceProcessor, tiny_llama: Path, tmp_path: Path
) -> None:
    """With bos in front, and control tokens kept whole; text that transformers' conversion treats as the library."""
    write_gguf(tmp_path / "m.gguf", tiny_llama, metadata=sentence_piece_metadata(sentence_piece))
    ours = load_tokenizer(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    assert ours.special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    for text in ("The quick brown fox", "12 tokens, 🙂 é", "a  b\n\nc", "promise</s>"):
        assert ours.backend.encode(text).ids == theirs.encode(text), text
        assert ours.backend.encode(text).ids[0] == 1


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"tokenizer.ggml.model": "bert"}, "of kind 'bert', supported are gpt2, llama"),
        (byte_level_metadata("gpt-3"), r"by the rule 'gpt-3', which is not known \(nearest: gpt-2\); known: .*smollm"),
        (byte_level_metadata("gpt-2") | {"tokenizer.ggml.merges": "a b"}, "no usable list of merges"),
        (byte_level_metadata("gpt-2") | {"tokenizer.ggml.token_type": [1]}, "no usable types of its tokens"),
        ({k: v for k, v in byte_level_metadata("gpt-2").items() if "merges" not in k}, "no usable list of merges"),
    ],
)
def test_unusable_vocabularies(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        build_gguf_tokenizer(metadata)


@pytest.mark.parametrize("with_bos", [False, True])
def test_directory_equals_auto_tokenizer(with_bos: bool, tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny_llama / "config.json").read_text())
    backend = tokenizers.Tokenizer.from_file(str(tiny_llama / "tokenizer.json"))
    backend.enable_truncation(3)
    backend.enable_padding()
    if with_bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
    backend.save(str(tmp_path / "tokenizer.json"))
    config = json.loads((tiny_llama / "tokenizer_config.json").read_text()) | {"add_eos_token": True}
    config["pad_token"] = {"__type": "AddedToken", "content": "<pad>"}
    config["model_max_length"] = 77
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")

    ours, theirs = load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TRICKY:
        ids = ours.backend.encode(text).ids
        assert ids == theirs.encode(text), text
        assert ours.backend.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.special_ids == frozenset({0, 1, 2, 320})
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")
    assert [getattr(ours, name) for name in names] == [getattr(theirs, name) for name in names]
    assert ours.chat_template == theirs.chat_template == "{{ messages }}"
    assert ours.model_max_length == 77
    assert (ours.add_bos_token, ours.add_eos_token) == (with_bos, False)


def test_tokenizer_json_alone_takes_its_special_tokens_from_the_model(tiny_llama: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "config.json"):
        (tmp_path / name).write_text((tiny_llama / name).read_text())
    ours = load_tokenizer(tmp_path / "tokenizer.json")
    assert (ours.bos_token_id, ours.eos_token_id) == (0, 2)
    assert ours.chat_template is None


def in_config(path: Path, named: dict[str, str]) -> Path:
    config = json.loads((path / "tokenizer_config.json").read_text())
    listed = [{"name": name, "template": text} for name, text in named.items()]
    (path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": listed}))
    return path


def in_files(path: Path, named: dict[str, str]) -> Path:
    (path / "additional_chat_templates").mkdir()
    for name, text in named.items():
        file = "chat_template.jinja" if name == "default" else f"additional_chat_templates/{name}.jinja"
        (path / file).write_text(text)
    return path


def in_gguf(path: Path, named: dict[str, str]) -> Path:
    keys = {name: "tokenizer.chat_template" + (f".{name}" if name != "default" else "") for name in named}
    metadata = byte_level_metadata("gpt-2") | {keys[name]: text for name, text in named.items()}
    write_gguf(path / "model.gguf", path, metadata=metadata)
    return path / "model.gguf"


TEMPLATES = {"default": "D{{ messages[0].content }}", "tool_use": "T{{ tools | length }}{{ messages[0].content }}"}


@pytest.mark.parametrize("place", [in_config, in_files, in_gguf])
@pytest.mark.parametrize("names", [["default", "tool_use"], ["tool_use", "rag"], ["default"]])
def test_templates_by_name(place: Any, names: list[str], tiny_llama: Path, tmp_path: Path) -> None:  # M2
    """From every place where checkpoints keep them; where transformers reads the place, it says the same."""
    directory = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    (directory / "chat_template.jinja").unlink(missing_ok=True)
    named = {name: TEMPLATES.get(name, "R") for name in names}
    source = place(directory, named)
    ours = Tokenizer.load(str(source))
    theirs = None if place is in_gguf else transformers.AutoTokenizer.from_pretrained(directory)
    conversation: Any = [{"role": "user", "content": "hi"}]
    tools: Any = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    asked: dict[str, Any] = {"tokenize": False}
    expected = "T1hi" if "tool_use" in names else "Dhi"
    assert ours.apply_chat_template(conversation, tools=tools, **asked) == expected
    if theirs is not None:
        assert theirs.apply_chat_template(conversation, tools=tools, **asked) == expected
    if "rag" in names:
        assert ours.apply_chat_template(conversation, chat_template="rag", **asked) == "R"
        with pytest.raises(VLLMValidationError, match="tool_use"):
            ours.apply_chat_template(conversation, **asked)
    else:
        assert ours.apply_chat_template(conversation, **asked) == "Dhi"
    if place is not in_gguf:
        load_tokenizer(source).save(directory)
        assert load_tokenizer(directory).chat_template == ours.chat_template


def test_templates_that_are_none(tiny_llama: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "config.json"):
        (tmp_path / name).write_text((tiny_llama / name).read_text())
    for template in (7, [{"name": "default"}], [{"name": 7, "template": "T"}]):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
        with pytest.raises(CheckpointError, match="chat_template"):
            load_tokenizer(tmp_path)


def test_old_vocabularies_are_converted(tmp_path: Path) -> None:
    """vocab.json and merges.txt, as older checkpoints have them."""
    metadata = byte_level_metadata("gpt-2")
    vocab = {token: index for index, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(metadata["tokenizer.ggml.merges"]))
    names = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer", **names}))
    ours, theirs = load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TRICKY:
        assert ours.backend.encode(text).ids == theirs.encode(text), text


def test_a_sentence_piece_model_is_converted(
    sentence_piece: sentencepiece.SentencePieceProcessor, tiny_llama: Path, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentence_piece.serialized_model_proto())
    (tmp_path / "config.json").write_text((tiny_llama / "config.json").read_text())
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", **names}))
    ours = load_tokenizer(tmp_path)
    for text in ("The quick brown fox", "12 tokens, 🙂 é", "a  b\n\nc"):
        assert ours.backend.encode(text, add_special_tokens=False).ids == sentence_piece.encode(text)
    assert (ours.bos_token_id, ours.eos_token_id) == (1, 2)


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no tokenizer\.json\. Pass a tokenizer"):
        load_tokenizer(tmp_path)


def test_broken_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not a usable tokenizer"):
        load_tokenizer(tmp_path)


class TestFilesThatContradict:  # M5
    """`special_tokens_map.json` and `tokenizer_config.json`: as transformers decides, and with a line that says so."""

    @pytest.fixture(params=[False, True], ids=["older", "newer"])
    def directory(self, request: pytest.FixtureRequest, tiny_llama: Path, tmp_path: Path) -> Path:
        directory = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
        entries = json.loads((directory / "tokenizer_config.json").read_text())
        entries.pop("added_tokens_decoder", None)
        if request.param:
            flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
            entries["added_tokens_decoder"] = {
                str(i): {"content": token, "special": True, **flags} for i, token in enumerate(SPECIAL_TOKENS)
            }
        (directory / "tokenizer_config.json").write_text(json.dumps(entries))
        (directory / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|im_start|>"}))
        return directory

    def test_as_transformers(self, directory: Path, caplog: pytest.LogCaptureFixture) -> None:
        ours, theirs = load_tokenizer(str(directory)), transformers.AutoTokenizer.from_pretrained(directory)
        assert ours.special_tokens["eos_token"] == theirs.eos_token
        said = "eos_token is '<|im_end|>' in tokenizer_config.json and '<|im_start|>' in special_tokens_map.json; "
        assert f"{said}'{theirs.eos_token}' is taken" in caplog.text


@pytest.mark.parametrize(
    ("name", "entries", "message"),
    [
        ("tokenizer_config.json", {"eos_token": 2}, "eos_token is 2, expected a token's text"),
        ("special_tokens_map.json", {"pad_token": {"content": [1]}}, "pad_token is .*, expected a token's text"),
        ("tokenizer_config.json", {"model_max_length": {}}, "model_max_length is {}, expected a positive number"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"x": {"content": "y"}}},
            "has .* for 'x', expected a token",
        ),
        ("tokenizer_config.json", {"added_tokens_decoder": {"5": "y"}}, "has 'y' for '5', expected a token"),
        ("tokenizer_config.json", {"added_tokens_decoder": ["y"]}, r"is \['y'\], expected tokens by id"),
    ],
)
def test_entries_of_the_wrong_kind(  # S7
    name: str, entries: dict[str, Any], message: str, tiny_llama: Path, tmp_path: Path
) -> None:
    directory = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    file = directory / name
    file.write_text(json.dumps((json.loads(file.read_text()) if file.is_file() else {}) | entries))
    with pytest.raises(CheckpointError, match=rf"{name} cannot be used: .*{message}"):
        load_tokenizer(str(directory))
