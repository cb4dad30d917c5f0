"""Files that are not what they say: weights that are programs, headers that lie, compiled programs with a change."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.security.test_processes import Payload
from tests.server.test_run_batch import line
from vllm import LLM, SamplingParams
from vllm.artifacts.fingerprint import sha256
from vllm.artifacts.manifest import sampled_sha256
from vllm.checkpoint.checkpoint import CheckpointError
from vllm.entrypoints.cli.main import main

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


@pytest.fixture
def model(tiny_llama: Path, tmp_path: Path) -> Path:
    """A checkpoint of this test's own."""
    directory = tmp_path / "model"
    shutil.copytree(tiny_llama, directory, ignore=shutil.ignore_patterns("neuron-compiled-artifacts"))
    return directory


def generate(model: Path, device: str = "cpu") -> str:
    llm = LLM(str(model), device=device, max_model_len=64, max_num_seqs=2)
    try:
        return llm.generate("The quick", GREEDY, use_tqdm=False)[0].outputs[0].text
    finally:
        llm.shutdown()


class TestWeightsThatRunCode:
    @pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.safetensors"])
    def test_pickles_are_never_opened(self, model: Path, tmp_path: Path, name: str) -> None:
        (model / "model.safetensors").unlink()
        mark = tmp_path / "mark"
        (model / name).write_bytes(pickle.dumps(Payload(mark)))
        with pytest.raises(CheckpointError):
            generate(model)
        assert not mark.exists()


class TestHeadersThatLie:
    @pytest.mark.parametrize(
        "change",
        [
            {"data_offsets": [0, 2**62]},
            {"data_offsets": [-8, 8]},
            {"shape": [2**40, 2**40]},
            {"shape": [-1]},
            {"dtype": "F128"},
            {"data_offsets": [0, 0], "shape": [0]},
        ],
    )
    def test_they_are_refused_before_anything_is_read(self, model: Path, change: dict[str, Any]) -> None:
        path = model / "model.safetensors"
        content = path.read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:end])
        name = next(name for name in header if name != "__metadata__")
        header[name] |= change
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])
        with pytest.raises((CheckpointError, ValueError)):
            generate(model)


class TestCompiledPrograms:
    def test_a_changed_one_is_not_run(self, model: Path) -> None:
        """It is compiled anew, and gives the same text."""
        text = generate(model)
        (store,) = (path for path in model.rglob("neuron-compiled-artifacts"))
        assert store.stat().st_mode & 0o077 == 0, "nobody else may write there"
        (weights,) = store.glob("*/weights.bin")
        content = bytearray(weights.read_bytes())
        content[len(content) // 2] ^= 0xFF
        weights.write_bytes(content)
        assert generate(model) == text
        assert list(store.glob("*.damaged-*")), "kept for whoever wants to know"

    @pytest.mark.parametrize(
        ("file", "change"),
        [
            ("programs/decode.json", lambda program: program["ops"][1]["output"].update(offset=1 << 40)),
            ("programs/mixed.json", lambda program: program["ops"][1]["output"].update(offset=1 << 40)),
            ("programs/mixed.json", lambda program: program["ops"][1]["output"].update(offset=2)),
            ("programs/decode.json", lambda program: program.update(max_tokens=1 << 20)),
            ("index.json", lambda index: index["kv"].update(vocab_size=1 << 20)),
            ("index.json", lambda index: index.update(hidden_width=1 << 24)),
        ],
        ids=["decode", "mixed", "odd offset", "more tokens", "vocabulary", "hidden cache"],
    )
    def test_one_that_reaches_beyond_its_memory_is_set_aside(
        self, model: Path, file: str, change: Any, caplog: pytest.LogCaptureFixture
    ) -> None:  # S4
        """However it is hashed: it is checked whole before anything runs, and compiled anew."""
        text = generate(model)
        (manifest_file,) = model.rglob("manifest.json")
        artifact = manifest_file.parent
        content = json.loads((artifact / file).read_text())
        change(content)
        (artifact / file).write_text(json.dumps(content))
        manifest = json.loads(manifest_file.read_text())
        manifest["files"][file] = {
            "size": (artifact / file).stat().st_size,
            "sha256": sha256(artifact / file),
            "sampled_sha256": sampled_sha256(artifact / file),
        }
        manifest_file.write_text(json.dumps(manifest))
        assert generate(model) == text
        assert "cannot be run" in caplog.text
        assert list(artifact.parent.glob("*.damaged-*"))
        assert generate(model) == text
        assert len(list(artifact.parent.glob("*.damaged-*"))) == 1


class TestBatchFiles:
    @pytest.mark.parametrize("source", ["http://169.254.169.254/in.jsonl", "https://localhost/in.jsonl"])
    def test_none_is_fetched(
        self, tiny_llama: Path, tmp_path: Path, source: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        words = ["run-batch", "-i", source, "-o", str(tmp_path / "out"), "--model", str(tiny_llama), "--device", "null"]
        assert main(words) == 1
        assert "not a file on this machine" in caplog.text

    def test_lines_bring_no_addresses(self, tiny_llama: Path, tmp_path: Path) -> None:
        source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        image = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/a.png"}}
        bodies = [
            {"messages": [{"role": "user", "content": [image]}]},
            {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_url": "file:///etc/passwd"}}]}]},
        ]
        source.write_text("\n".join(line(str(i), "/v1/chat/completions", body) for i, body in enumerate(bodies)))
        words = ["run-batch", "-i", str(source), "-o", str(target), "--model", str(tiny_llama), "--device", "null"]
        main([*words, "--max-model-len", "64"])
        answers = [json.loads(text) for text in target.read_text().splitlines()]
        assert [answer["response"]["status_code"] for answer in answers] == [400, 400]
