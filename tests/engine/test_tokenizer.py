"""The tokenizer that users get, held against transformers' on the same files."""

from __future__ import annotations

import jinja2
import pytest
import transformers

from vllm.engine.text.tokenizer import Tokenizer
from vllm.exceptions import VLLMValidationError

TEXTS = ["", "Hello, world!", "日本語 😀", "<|im_start|>user\nhi<|im_end|>", "  two  spaces "]
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": 'Bonjour <b> "é"  '},
    {"role": "assistant", "content": "Salut "},
]
TOOLS = [
    {
        "type": "function",
        "function": {"name": "f", "description": "Größe & <x>", "parameters": {"type": "object", "properties": {}}},
    }
]
TEMPLATES = {
    "plain": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
    "special tokens": "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}{{ unk_token }}",
    "trimmed": "{%- for m in messages %}\n    {{- m.content | trim }}\n    <e>\n{%- endfor %}\n",
    "blocks": "{% if true %}\n  indented\n{% endif %}\nend",
    "tools": "{% if tools %}{{ tools | tojson }}{{ tools | tojson(indent=2) }}{% endif %}{{ messages[-1].content }}",
    "documents": "{% for d in documents or [] %}[{{ d.title }}]{% endfor %}{{ messages[0].content }}",
    "loop controls": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %};{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "variables": "{{ enable_thinking | default('unset') }}{{ messages | length }}",
    "date": "{{ strftime_now('%Y') }}{{ messages[0].role }}",
    "prompt": "{{ messages[-1].content }}{% if add_generation_prompt %}<go>{% endif %}",
    "selected": "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list | tojson }}",
}


@pytest.fixture(scope="module")
def ours(tiny_llama) -> Tokenizer:
    return Tokenizer.load(str(tiny_llama))


@pytest.fixture(scope="module")
def theirs(tiny_llama):
    return transformers.AutoTokenizer.from_pretrained(tiny_llama)


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_text_are_those_of_transformers(ours, theirs, text):
    ids = theirs.encode(text)
    assert ours.encode(text) == ids
    assert ours(text).input_ids == ids
    assert ours(text)["attention_mask"] == [1] * len(ids)
    assert ours.tokenize(text) == theirs.tokenize(text)
    for skip in (False, True):
        assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
    assert ours.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids)
    assert ours.convert_tokens_to_ids(theirs.tokenize(text)) == theirs.convert_tokens_to_ids(theirs.tokenize(text))


def test_batches(ours, theirs):
    assert ours(TEXTS).input_ids == theirs(TEXTS).input_ids
    assert ours.batch_decode(ours(TEXTS).input_ids) == theirs.batch_decode(theirs(TEXTS).input_ids)


def test_attributes_are_those_of_transformers(ours, theirs):
    for name in (
        "bos_token",
        "eos_token",
        "pad_token",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "vocab_size",
        "chat_template",
        "is_fast",
    ):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert len(ours) == len(theirs)
    assert ours.get_vocab() == theirs.get_vocab()
    left_out = [i for i in range(len(theirs)) if theirs.decode([i], skip_special_tokens=True) == ""]
    assert ours.all_special_ids == left_out
    assert set(ours.all_special_tokens) >= set(theirs.all_special_tokens)
    assert ours.max_token_id == max(theirs.get_vocab().values())


def test_truncation_cuts_the_named_side(ours):
    ids = ours.encode("Hello, world!")
    assert ours.encode("Hello, world!", truncation=True, max_length=3) == ids[:3]
    ours.truncation_side = "left"
    try:
        assert ours.encode("Hello, world!", truncation=True, max_length=3) == ids[-3:]
    finally:
        ours.truncation_side = "right"


def test_what_the_tokenizer_does_not_do_is_said(ours):
    with pytest.raises(ValueError, match="return_tensors"):
        ours("x", return_tensors="pt")


@pytest.mark.parametrize("add_generation_prompt", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_render_as_with_transformers(ours, theirs, name, add_generation_prompt):
    options = {
        "chat_template": TEMPLATES[name],
        "tools": TOOLS,
        "documents": [{"title": "T", "text": "x"}],
        "add_generation_prompt": add_generation_prompt,
        "tokenize": False,
        "enable_thinking": False,
    }
    assert ours.apply_chat_template(CONVERSATION, **options) == theirs.apply_chat_template(CONVERSATION, **options)


def test_the_default_template_gives_ids(ours, theirs):
    expected = theirs.apply_chat_template(CONVERSATION, add_generation_prompt=True, return_dict=False)
    assert ours.apply_chat_template(CONVERSATION, add_generation_prompt=True) == expected
    assert ours.apply_chat_template([CONVERSATION] * 2, add_generation_prompt=True) == [expected] * 2
    encoded = ours.apply_chat_template(CONVERSATION, add_generation_prompt=True, return_dict=True)
    assert encoded.input_ids == expected


@pytest.mark.parametrize("name", ["plain", "trimmed", "special tokens"])
def test_the_last_message_is_continued_as_with_transformers(ours, theirs, name):
    options = {"chat_template": TEMPLATES[name], "continue_final_message": True, "tokenize": False}
    for last in ("Salut", "Salut ", "a <e>\n b"):
        conversation = [*CONVERSATION[:-1], {"role": "assistant", "content": last}]
        expected = theirs.apply_chat_template(conversation, **options)
        assert ours.apply_chat_template(conversation, **options) == expected
        assert conversation[-1]["content"] == last


def test_the_last_part_of_a_message_is_continued(ours):
    template = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}<end>{% endfor %}"
    conversation = [{"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    text = ours.apply_chat_template(conversation, chat_template=template, continue_final_message=True, tokenize=False)
    assert text == "ab"


def test_continuing_and_a_new_turn_exclude_one_another(ours):
    with pytest.raises(VLLMValidationError, match="exclude"):
        ours.apply_chat_template(CONVERSATION, add_generation_prompt=True, continue_final_message=True)
    with pytest.raises(VLLMValidationError, match="leaves out"):
        ours.apply_chat_template(CONVERSATION, chat_template="none", continue_final_message=True)


def test_templates_refuse_in_their_own_words(ours):
    with pytest.raises(jinja2.TemplateError, match="roles must alternate"):
        ours.apply_chat_template(CONVERSATION, chat_template="{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages.__init__.__globals__ }}",
        "{% for x in cycler.__init__.__globals__ %}{% endfor %}",
    ],
)
def test_templates_cannot_leave_the_sandbox(ours, template):
    with pytest.raises(jinja2.TemplateError):
        ours.apply_chat_template(CONVERSATION, chat_template=template)


def test_functions_as_tools_are_refused(ours):
    with pytest.raises(VLLMValidationError, match="JSON schemas"):
        ours.apply_chat_template(CONVERSATION, tools=[print])


def test_a_model_without_a_template_says_so(ours):
    bare = Tokenizer.load(ours.name_or_path)
    bare.chat_template = None
    with pytest.raises(VLLMValidationError, match="no chat template"):
        bare.apply_chat_template(CONVERSATION)
