"""What the package's own sources must not hold: ways by which data becomes code, or a request a dead engine."""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import vllm
from vllm import LLM, SamplingParams, envs

PACKAGE = Path(vllm.__file__).parent
PAGES = [PACKAGE.parent / "docs" / name for name in ("security.md", "server.md", "ecosystem.md", "wishes.md")]
MODULES_THAT_RUN_DATA = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
CALLS_THAT_RUN_DATA = {"eval", "exec", "compile", "__import__"}
SERVING = ("core", "engine", "sample", "entrypoints/openai", "entrypoints/server", "entrypoints/chat_output", "runner")


def trees(*under: str) -> Iterator[tuple[Path, ast.AST]]:
    for part in under or ("",):
        path = PACKAGE / part
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            yield file, ast.parse(file.read_text(encoding="utf-8"))


def test_nothing_is_unpickled() -> None:
    for file, tree in trees():
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not MODULES_THAT_RUN_DATA & {name.partition(".")[0] for name in names}, file


def test_no_data_is_run() -> None:
    for file, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in CALLS_THAT_RUN_DATA, (file, node.lineno)
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "yaml.unsafe_load", "os.system"):
                pytest.fail(f"{file}:{node.lineno}")


def test_processes_of_ours_do_not_get_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """S13: it was in the environment of all of them."""
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    assert "VLLM_API_KEY" not in envs.of_children() and "PATH" in envs.of_children()
    num_starts = 0
    for file, tree in trees("engine", "entrypoints/openai", "entrypoints/server", "runner"):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("Popen", "create_subprocess_exec")):
                assert "of_children()" in ast.unparse(node), f"{file}:{node.lineno}"
                num_starts += 1
    assert num_starts >= 3


def test_floors_of_packages_are_those_of_the_table() -> None:
    """S11: jinja2 from 3.1.0 on was taken, whose sandbox has known ways out."""
    root = PACKAGE.parent
    rows = re.findall(r"^\| (\w+) \| ([\d.]+) \| CVE", (root / "docs/security.md").read_text(encoding="utf-8"), re.M)
    assert {"jinja2", "starlette"} <= {name for name, _ in rows}
    required = "\n".join((root / f"requirements{part}.txt").read_text() for part in ("", "-neuron"))
    for name, floor in rows:
        assert re.findall(rf"^{name}>=([\d.]+)$", required, re.M) == [floor], name


def test_no_assertion_can_be_reached_by_a_request() -> None:
    for file, tree in trees(*SERVING):
        assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)], file


def test_templates_are_rendered_in_a_sandbox_alone() -> None:
    for file, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("Environment", "Template"):
                pytest.fail(f"{file}:{node.lineno}: an environment of jinja2 that is no sandbox")


def test_code_of_a_checkpoint_is_not_run(tiny_llama: Path, tmp_path: Path) -> None:
    """`auto_map`, in the config and in the tokenizer's, names a module that leaves a mark when it is run."""
    model, mark = tmp_path / "model", tmp_path / "mark"
    shutil.copytree(tiny_llama, model)
    code = f"open({str(mark)!r}, 'w').close()\nclass Thing: pass\n"
    for name in ("modeling_x.py", "configuration_x.py", "tokenization_x.py"):
        (model / name).write_text(code)
    maps = {
        "config.json": {"AutoConfig": "configuration_x.Thing", "AutoModelForCausalLM": "modeling_x.Thing"},
        "tokenizer_config.json": {"AutoTokenizer": ["tokenization_x.Thing", None]},
        "generation_config.json": {"AutoConfig": "configuration_x.Thing"},
    }
    for name, auto_map in maps.items():
        path = model / name
        fields = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**fields, "auto_map": auto_map}))
    llm = LLM(str(model), device="null", max_model_len=64)
    llm.generate("a", SamplingParams(max_tokens=2), use_tqdm=False)
    llm.llm_engine.shutdown()
    assert not mark.exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    named = set(re.findall(r"`(tests/[\w/]+\.py)(?:::([\w:]+))?`", page.read_text(encoding="utf-8")))
    assert len(named) >= 4
    for file, name in named:
        path = PACKAGE.parent / file
        assert path.is_file(), file
        text = path.read_text(encoding="utf-8")
        for part in name.split("::") if name else ():
            assert re.search(rf"(class|def) {part}\b", text), f"{file}::{name}"
