"""What speculation is measured on: prompts of a chat model, made of text that no draft was trained on."""

from __future__ import annotations

from typing import Any

from drafts import corpus

TASKS = {
    "plain": ("{}",),
    "repeating": (
        "Copy this text and correct its spelling. Write nothing else.\n\n{}",
        "Repeat the following text word by word.\n\n{}",
        "Rewrite this with every line as a list item, and keep all of its words.\n\n{}",
        "Quote this passage, then summarise it.\n\n{}",
    ),
}
"""plain: answers in words of their own. repeating: answers that are mostly made of the prompt."""


def make_prompts(tokenizer: Any, task: str, count: int, longest: int) -> list[list[int]]:
    """Token ids of `count` prompts of at most `longest` tokens, the same every time."""
    held_out = corpus.held_out()
    sources = held_out.questions if task == "plain" else held_out.passages
    forms = TASKS[task]
    prompts: list[list[int]] = []
    for i, source in enumerate(sources):
        message = {"role": "user", "content": forms[i % len(forms)].format(source)}
        ids = list(tokenizer.apply_chat_template([message], add_generation_prompt=True))
        if len(ids) <= longest:
            prompts.append(ids)
        if len(prompts) == count:
            return prompts
    raise ValueError(f"there are only {len(prompts)} prompts of at most {longest} tokens, {count} were asked for")
