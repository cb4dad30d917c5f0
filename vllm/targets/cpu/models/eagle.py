"""EAGLE 1 and 3: drafts of one small decoder that reads what the target knew of the token before.

Pair i of a sequence is (the target's hidden state of token i - 1, token i). It lies at KV position i, so that an entry
depends on no later token and blocks can be shared; rotary positions being relative, it does not matter that the public
code counts pairs from 0. Token 0 has no predecessor: its pair has a hidden state of zeros. From pair i a draft makes
its own hidden state of token i, and from that token i + 1; for the next draft that state stands in for the target's.

    eagle    x = fc([embedding | hidden]); decoder layers, the first without an input norm; the target's output matrix.
             hidden: after the target's final norm. Made state: the residual stream, as it is.
    eagle3   hidden: fc of the residual streams after three of the target's layers, 1, n/2 - 1 and n - 4 of n. The layer
             reads [norm(embedding) | norm(hidden)] and adds to hidden; own norm and output matrix, often over a
             smaller vocabulary. Made state: the residual stream before that norm.

Sources: SafeAILab/EAGLE eagle/model/cnets1.py and cnets.py; vLLM model_executor/models/llama_eagle.py, llama_eagle3.py;
NxD Inference models/model_base.py (`process_eagle_draft_hidden_states`, `full_hidden_states` behind `self.norm`) and
models/llama/modeling_llama.py. The first norm that EAGLE lacks is there with NxD Inference's
`enable_eagle_draft_input_norm`.

A target's graph is finished by its model file; `with_kept_states` adds what its draft will want to recall.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vllm.checkpoint.draft import DRAFT, DraftCheckpoint
from vllm.targets.cpu.graph import Buffer, Graph, Op, Weight
from vllm.targets.cpu.layers import RESIDUAL, Decoder, LayerInput

_KEPT, _EMBEDDED, _RECALLED = "kept", "embedded", "recalled"
_FC = f"{DRAFT}fc"
_FEWEST_LAYERS = 6


class _EagleDecoder(Decoder):
    def __init__(self, config: dict[str, Any], max_len: int | None, draft: DraftCheckpoint) -> None:
        super().__init__(config, max_len, DRAFT)
        self.draft, self.config = draft, config
        self.embed(_EMBEDDED, draft.embedding)

    def recall(self, buffer: str) -> None:
        self._op("recall", (), self._buffer(buffer, self.hidden_size))

    def combine(self) -> None:
        """hidden = fc([embedding | recalled])."""
        self._buffer(RESIDUAL, self.hidden_size)
        self._linear("fc", _EMBEDDED, RESIDUAL, [_FC], bias=f"{_FC}.bias" in self.draft, part=0)
        self._linear("fc", _RECALLED, RESIDUAL, [_FC], part=1)

    def layer(self, layer: int, inputs: tuple[LayerInput, ...]) -> None:
        config = self.config
        biases = {"qkv_bias": config["attention_bias"], "output_bias": config["attention_output_bias"]}
        self.attention(layer, inputs=inputs, **biases)
        self.gated_mlp(layer, bias=config["mlp_bias"])

    def finish(self, norm: str | None) -> Graph:
        """Keeps the made state of the token that is drafted from, and drafts."""
        self._op("keep", (RESIDUAL,), RESIDUAL, drafted=True)
        return self.head(norm, self.draft.output_matrix)


def build_eagle(config: dict[str, Any], max_len: int | None, draft: DraftCheckpoint) -> Graph:
    """EAGLE 1. config: the draft's, in normal form."""
    decoder = _EagleDecoder(config, max_len, draft)
    decoder.recall(_RECALLED)
    decoder.combine()
    for layer in range(config["num_hidden_layers"]):
        has_norm = layer > 0 or f"{DRAFT}layers.0.input_layernorm.weight" in draft
        decoder.layer(layer, (LayerInput(norm="input_layernorm" if has_norm else None),))
    return decoder.finish(None)


def build_eagle3(config: dict[str, Any], max_len: int | None, draft: DraftCheckpoint) -> Graph:
    """EAGLE 3. config: the draft's, in normal form."""
    decoder = _EagleDecoder(config, max_len, draft)
    decoder.recall(RESIDUAL)
    beside = (LayerInput(_EMBEDDED, "input_layernorm"), LayerInput(RESIDUAL, "hidden_norm"))
    for layer in range(config["num_hidden_layers"]):
        decoder.layer(layer, beside if layer == 0 else (LayerInput(),))
    return decoder.finish("norm")


def with_kept_states(graph: Graph, method: str, draft: DraftCheckpoint) -> Graph:
    """The target's graph, which also keeps in the hidden cache what an EAGLE draft of `method` recalls.

    What else it computes does not change. Raises ValueError for a target that eagle3 cannot tap.
    """
    result = replace(graph, buffers=dict(graph.buffers), weights=dict(graph.weights), ops=list(graph.ops))
    width = graph.buffers[RESIDUAL].width
    result.buffers[_KEPT] = Buffer(_KEPT, "tokens", width)
    if method == "eagle":
        norm = next(op for op in graph.ops if op.weights == ("final_norm",))
        kept = [replace(norm, inputs=(RESIDUAL,), output=_KEPT)]
    else:
        _tap_layers(result, width, draft)
        kept = []
    end = next(i for i, op in enumerate(result.ops) if op.kind == "select")
    result.ops[end:end] = [*kept, Op("keep", (_KEPT,), _KEPT, attrs={"drafted": False})]
    return result


def kept_width(graph: Graph) -> int:
    """Columns of the hidden cache that a graph works on; 0 without one."""
    return next((graph.buffers[op.output].width for op in graph.ops if op.kind == "keep"), 0)


def tapped_layers(num_layers: int) -> tuple[int, int, int]:
    """The layers of a target whose outputs eagle3 reads. Raises ValueError if they are not three."""
    if num_layers < _FEWEST_LAYERS:
        raise ValueError(f"eagle3 reads three of its target's layers, at least {_FEWEST_LAYERS}; it has {num_layers}")
    return 1, num_layers // 2 - 1, num_layers - 4


def _tap_layers(graph: Graph, width: int, draft: DraftCheckpoint) -> None:
    """After three layers: kept = or += fc's part of the residual stream."""
    for part, layer in enumerate(tapped_layers(graph.num_layers)):
        name = f"eagle.fc.{part}"
        columns = (part * width, (part + 1) * width)
        graph.weights[name] = Weight(name, "linear", (width, width), (f"{_FC}.weight",), columns=columns)
        weights: tuple[str, ...] = (name,)
        if part == 0 and f"{_FC}.bias" in draft:
            graph.weights["eagle.fc.bias"] = Weight("eagle.fc.bias", "vector", (width,), (f"{_FC}.bias",))
            weights = (name, "eagle.fc.bias")
        end = max(i for i, op in enumerate(graph.ops) if op.weights and op.weights[0].startswith(f"layers.{layer}."))
        graph.ops.insert(end + 1, Op("linear", (RESIDUAL,), _KEPT, weights, {"accumulate": part > 0}))
