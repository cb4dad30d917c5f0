"""Text that every machine with Python has: the language reference that `help()` shows, and docstrings of the library.

What a draft is trained on and what it is measured on never overlap: every eighth topic, and every eighth module, is
held out, but for passages that the others quote.
"""

from __future__ import annotations

import importlib
import inspect
import re
import warnings
from dataclasses import dataclass
from pydoc_data.topics import topics

HELD_OUT = 8
"""One piece in so many is kept for measuring."""

_MODULES = """
    abc argparse array ast asyncio base64 bisect calendar cmath cmd codecs collections colorsys concurrent.futures
    configparser contextlib contextvars copy csv ctypes curses dataclasses datetime decimal difflib dis email enum
    fileinput fnmatch fractions ftplib functools gc getopt gettext glob graphlib gzip hashlib heapq hmac html
    http.client http.server imaplib inspect io ipaddress itertools json keyword linecache locale logging lzma
    mailbox math mimetypes mmap multiprocessing netrc numbers operator optparse os pathlib pdb pickle pkgutil
    platform plistlib poplib pprint profile pstats queue random re sched secrets select selectors shelve shlex
    shutil signal smtplib socket socketserver sqlite3 ssl stat statistics string stringprep struct subprocess
    symtable sysconfig tarfile tempfile textwrap threading timeit tokenize trace traceback tracemalloc turtle types
    typing unicodedata unittest urllib.parse urllib.request uuid venv warnings wave weakref webbrowser wsgiref
    xml.dom xml.sax zipfile zipimport zlib
"""
_QUESTIONS = (
    "Explain this in simple words:\n\n{}",
    "Summarise the following text.\n\n{}",
    "Write a short tutorial about the following.\n\n{}",
    "What is this good for? Give an example.\n\n{}",
)


@dataclass(frozen=True, slots=True)
class Corpus:
    """texts: prose and reference, whole. passages: some sentences each. questions: on each passage, to a chat model."""

    texts: list[str]
    passages: list[str]
    questions: list[str]


def training() -> Corpus:
    texts, docs = _pieces(held_out=False)
    return _corpus(texts, [*_passages(texts), *docs])


def held_out() -> Corpus:
    learnt_texts, learnt_docs = _pieces(held_out=False)
    learnt = "\n".join([*learnt_texts, *learnt_docs])
    texts, docs = _pieces(held_out=True)
    return _corpus(texts, [passage for passage in [*_passages(texts), *docs] if passage not in learnt])


def _corpus(texts: list[str], passages: list[str]) -> Corpus:
    passages = _spread(passages)
    asked = [_QUESTIONS[i % len(_QUESTIONS)].format(passage) for i, passage in enumerate(passages)]
    return Corpus(texts, passages, asked)


def _pieces(held_out: bool) -> tuple[list[str], list[str]]:
    """Topics and docstrings of one side."""
    texts = [text for i, (_, text) in enumerate(sorted(topics.items())) if (i % HELD_OUT == 0) == held_out]
    modules = [name for i, name in enumerate(_MODULES.split()) if (i % HELD_OUT == 0) == held_out]
    return texts, [doc for name in modules for doc in _docstrings(name)]


def _passages(texts: list[str]) -> list[str]:
    return [paragraph for text in texts for paragraph in _paragraphs(text)]


def _docstrings(name: str) -> list[str]:
    """Docstrings of a module and its public members that are a few sentences long, in order of name."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = importlib.import_module(name)
    except ImportError:
        return []
    members = [getattr(module, member) for member in sorted(vars(module)) if not member.startswith("_")]
    own = [m for m in members if getattr(m, "__module__", None) == name and callable(m)]
    found = [inspect.getdoc(each) or "" for each in (module, *own)]
    return [doc for doc in found if 120 <= len(doc) <= 600]


def _paragraphs(text: str) -> list[str]:
    return [p for p in re.split(r"\n\s*\n", text) if 120 <= len(p) <= 600]


def _spread(passages: list[str]) -> list[str]:
    """The passages without repetitions, neighbours far apart, the same way every time."""
    unique = list(dict.fromkeys(passages))
    stride = next(n for n in range(int(len(unique) * 0.618), len(unique) + 2) if _coprime(n, len(unique)))
    return [unique[i * stride % len(unique)] for i in range(len(unique))]


def _coprime(a: int, b: int) -> bool:
    while b:
        a, b = b, a % b
    return a == 1
