"""Make drafts: a shallow draft, an EAGLE head and an EAGLE-3 head of a Llama, distilled on its own outputs, in minutes.

    python benchmarks/train_drafts.py [--model FILE.gguf | DIR | tiny] [--only draft eagle eagle3] [--scale 1]
        [--cache-dir DIR]

Without --model: SmolLM2-135M. `tiny`: a Llama of six layers is trained first, on text that ships with Python. --scale
multiplies text and training: 4 is better than 1, and takes four times as long.
Everything is kept in --cache-dir under a hash of the settings that shaped it, so that a second run makes what is
missing and nothing else. Ends in one JSON line: the checkpoints' directories, and how often each draft in a row agreed
with the target's greedy token on text that nothing was trained on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from drafts import corpus, features, saving
from drafts.heads import Eagle, Eagle3, Head, Shallow
from drafts.target import llama_config, load_target
from drafts.tiny import train_tiny_target
from drafts.training import Schedule, Task, agreement, train
from model_files import write_whole
from options import default_model

from vllm.checkpoint import open_checkpoint
from vllm.checkpoint.tokenizer import load_tokenizer

KINDS = ("draft", "eagle", "eagle3")
DEFAULT_CACHE = Path.home() / ".cache" / "vllm" / "drafts"
MEASURED_WINDOWS = 16
RECIPE = 2
"""Counts changes to how heads are made, so that those of an older recipe are not taken for the same."""
UNROLL = 3
"""Drafts in a row that a head is trained for and measured at."""

SETTINGS: dict[str, dict[str, Any]] = {
    "smollm2": {
        "questions": 320, "answer_len": 96, "text_windows": 96, "draft_vocab_size": 4096,
        "draft_layers": [0, 1, 2, 29], "updates": {"draft": 200, "eagle": 320, "eagle3": 320},
    },
    "tiny": {
        "questions": 0, "answer_len": 96, "text_windows": 400, "draft_vocab_size": 512,
        "draft_layers": [3], "updates": {"draft": 200, "eagle": 200, "eagle3": 200},
    },
}  # fmt: skip


class Workshop:
    """One target's drafts. Stages are functions of settings, cached by their hash."""

    def __init__(self, model: str, settings: dict[str, Any], cache: Path) -> None:
        self.model, self.settings, self.cache = model, settings, cache
        size = sum(file.stat().st_size for file in open_checkpoint(model).files)
        self.identity = {"model": Path(model).name, "bytes": size}
        self._target: Any = None

    @property
    def target(self) -> Any:
        if self._target is None:
            self._target = load_target(self.model)
        return self._target

    def place(self, stage: str, *keys: str) -> Path:
        """Where a stage's result is kept: named by all that shapes it."""
        shaped = {**self.identity, **{key: self.settings[key] for key in keys}}
        digest = hashlib.sha256(json.dumps(shaped, sort_keys=True).encode()).hexdigest()[:12]
        return self.cache / f"{stage}-{digest}"

    def sequences(self) -> dict[str, list[list[int]]]:
        """Token ids to learn from, and held out ones, generated and found."""
        path = self.place("sequences", "questions", "answer_len", "text_windows").with_suffix(".json")
        if not path.exists():
            tokenizer = load_tokenizer(open_checkpoint(self.model)).backend
            count, width, texts = (self.settings[key] for key in ("questions", "answer_len", "text_windows"))
            learn, measure = corpus.training(), corpus.held_out()
            asked = learn.questions[:count] + measure.questions[: MEASURED_WINDOWS * (count > 0)]
            generated = features.generate(self.model, asked, width) if asked else []
            cut = len(generated) - MEASURED_WINDOWS * (count > 0)
            result = {
                "learn": generated[:cut] + features.windows_of_text(learn.texts, tokenizer, texts),
                "measure": generated[cut:] or features.windows_of_text(measure.texts, tokenizer, MEASURED_WINDOWS),
            }
            write_whole(path, lambda part: part.write_text(json.dumps(result)))
        return dict(json.loads(path.read_text()))

    def data(self, auxiliary: bool) -> tuple[features.Features, features.Features]:
        """Features to learn from, and held out ones; with those that EAGLE-3 reads if `auxiliary`."""
        sequences = self.sequences()
        keys = ("questions", "answer_len", "text_windows")
        path, fewer = (self.place(stage, *keys).with_suffix(".pt") for stage in ("auxiliary", "features"))
        if not auxiliary and not path.exists():
            path = fewer
        if not path.exists():
            collected = features.collect(self.model, sequences["learn"] + sequences["measure"], auxiliary)
            write_whole(path, lambda part: features.save(collected, part))
        return features.load(path).split(len(sequences["learn"]))

    def draft_ids(self) -> torch.Tensor:
        ends = [self.target.config.eos_token_id, self.target.config.bos_token_id]
        size = self.settings["draft_vocab_size"]
        always = [token for token in ends if token is not None]
        return torch.from_numpy(features.frequent_tokens(self.sequences()["learn"], size, always))

    def make(self, kind: str) -> dict[str, Any]:
        """The checkpoint of one kind: its directory and its agreement with the target."""
        directory = self.place(f"{kind}-{RECIPE}", *self.settings)
        if not (directory / "agreement.json").exists():
            print(f"training {kind}", flush=True)
            ids = self.draft_ids()
            task, tensors, entries = _BUILDERS[kind](self, ids)
            learn, measure = self.data(auxiliary=kind == "eagle3")
            unroll = 1 if kind == "draft" else UNROLL
            train(task, learn, Schedule(self.settings["updates"][kind], unroll=unroll))
            rates = agreement(task, measure, unroll)
            config = llama_config(open_checkpoint(self.model))
            saving.save(directory, config, tensors(), self.model, ids, **entries)
            if kind == "eagle":
                full = saving.with_target(tensors(), self.target)
                saving.save(directory / "nxdi", config, full, self.model, **entries)
            (directory / "agreement.json").write_text(json.dumps(rates))
        return {
            "directory": str(directory),
            "agreement": [round(rate, 3) for rate in json.loads((directory / "agreement.json").read_text())],
        }

    def task(self, head: Head, source: str, ids: torch.Tensor, output: Callable[..., torch.Tensor]) -> Task:
        return Task(head, source, self.target.model.embed_tokens.weight, self.target.lm_head.weight, output, ids)


Built = tuple[Task, Callable[[], dict[str, torch.Tensor]], dict[str, Any]]


def _draft(shop: Workshop, ids: torch.Tensor) -> Built:
    """Some of the target's layers, between its embeddings and its output matrix, which stay as they are."""
    import transformers

    layers = shop.settings["draft_layers"]
    config = llama_config(open_checkpoint(shop.model))
    config.num_hidden_layers = len(layers)
    config.layer_types = None
    model = transformers.LlamaForCausalLM(config)
    weights = dict(shop.target.state_dict())
    for own, theirs in enumerate(layers):
        for name in list(model.model.layers[own].state_dict()):
            weights[f"own.{own}.{name}"] = weights[f"model.layers.{theirs}.{name}"]
    weights = {
        name: weights[f"own.{name.removeprefix('model.layers.')}"] if ".layers." in name else weights[name]
        for name in model.state_dict()
    }
    model.load_state_dict(weights)
    model.model.embed_tokens.requires_grad_(False)
    model.lm_head.requires_grad_(False)
    rows = shop.target.lm_head.weight[ids]
    tied = shop.target.config.tie_word_embeddings

    def tensors() -> dict[str, torch.Tensor]:
        return {name: value for name, value in model.state_dict().items() if not (tied and name == "lm_head.weight")}

    entries = {"num_hidden_layers": len(layers), "architectures": ["LlamaForCausalLM"]}
    return shop.task(Shallow(model), "hidden", ids, lambda x: x @ rows.T), tensors, entries


def _eagle(shop: Workshop, ids: torch.Tensor) -> Built:
    """Its output meets the output matrix without a norm, as the target's normed states do; so it starts as those.

    (The target's last layer is no start: its residual stream is orders of magnitude larger.)
    """
    head = Eagle(shop.target.config)
    width = shop.target.config.hidden_size
    with torch.no_grad():
        for matrix in head.parameters():
            if matrix.ndim == 2:
                matrix.normal_(0.0, 0.02)
        head.fc.weight[:, width:] += torch.eye(width)
    rows = shop.target.lm_head.weight[ids]
    entries = {"num_hidden_layers": 1, "bias": False, "architectures": ["LlamaForCausalLM"]}
    return shop.task(head, "hidden", ids, lambda x: x @ rows.T), lambda: saving.eagle_tensors(head), entries


def _eagle3(shop: Workshop, ids: torch.Tensor) -> Built:
    head = Eagle3(shop.target.config, len(ids))
    _copy_layer(shop, head.midlayer)
    with torch.no_grad():
        head.lm_head.weight.copy_(shop.target.lm_head.weight[ids])
        head.norm.weight.copy_(shop.target.model.norm.weight)

    def tensors() -> dict[str, torch.Tensor]:
        return dict(head.state_dict())

    entries = {"num_hidden_layers": 1, "architectures": ["LlamaForCausalLMEagle3"], "tie_word_embeddings": False}
    return shop.task(head, "auxiliary", ids, head.lm_head), tensors, entries


_BUILDERS: dict[str, Callable[[Workshop, torch.Tensor], Built]] = {
    "draft": _draft,
    "eagle": _eagle,
    "eagle3": _eagle3,
}


def _copy_layer(shop: Workshop, layer: torch.nn.Module) -> None:
    """Start from the target's last layer, as far as shapes agree."""
    source = dict(shop.target.model.layers[-1].named_parameters())
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name in source and source[name].shape == parameter.shape:
                parameter.copy_(source[name])


def scaled(settings: dict[str, Any], scale: float) -> dict[str, Any]:
    counts = {name: round(settings[name] * scale) for name in ("questions", "text_windows")}
    return settings | counts | {"updates": {kind: round(n * scale) for kind, n in settings["updates"].items()}}


def make_drafts(
    model: str | None = None, kinds: tuple[str, ...] = KINDS, cache: Path = DEFAULT_CACHE, scale: float = 1.0
) -> dict[str, dict[str, Any]]:
    """Checkpoints by kind, made unless they are there; "target": the model they are for. None: SmolLM2; "tiny"."""
    settings = scaled(SETTINGS["tiny" if model == "tiny" else "smollm2"], scale)
    path = str(train_tiny_target(cache)) if model == "tiny" else model or default_model()
    shop = Workshop(path, settings, cache)
    return {"target": {"directory": path}, **{kind: shop.make(kind) for kind in kinds}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--cache-dir", type=Path, default=DEFAULT_CACHE)
    args = parser.parse_args()
    torch.manual_seed(0)
    np.random.seed(0)
    print(json.dumps(make_drafts(args.model, tuple(args.only), args.cache_dir, args.scale)))


if __name__ == "__main__":
    main()
