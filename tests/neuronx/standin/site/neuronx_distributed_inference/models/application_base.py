"""The application: compile, load, forward."""

import os
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from neuronx_distributed_inference import at_least
from neuronx_distributed_inference.models.chunk_wrapper import ChunkedPrefillWrapper
from neuronx_distributed_inference.models.config import InferenceConfig, NeuronConfig
from neuronx_distributed_inference.models.fused_speculation import FusedSpecModel
from neuronx_distributed_inference.models.model_wrapper import (
    CONTEXT_ENCODING_MODEL_TAG,
    FUSED_SPECULATION_MODEL_TAG,
    TOKEN_GENERATION_MODEL_TAG,
    ModelWrapper,
)
from neuronx_distributed_inference.models.prefix_wrapper import PrefixCachingWrapper
from neuronx_distributed_inference.modules.generation.sampling import (
    Sampler,
    infer_sampling_params,
    validate_sampling_params,
)


class CausalLMOutputWithPast:
    def __init__(self, logits, hidden_states):
        self.logits = logits
        self.hidden_states = hidden_states


class NeuronApplicationBase:
    _model_cls = None
    _keeps_a_window = False

    def __init__(self, model_path, config=None, neuron_config=None):
        self.model_path = str(model_path)
        self.config = config if config is not None else self.get_config_cls().load(self.model_path)
        self.neuron_config = neuron_config or self.config.neuron_config
        wrapper = PrefixCachingWrapper if self.neuron_config.is_prefix_caching else ModelWrapper
        if self.neuron_config.chunked_prefill_config is not None:
            wrapper = ChunkedPrefillWrapper
        is_fused = self.neuron_config.enable_fused_speculation
        generation = FUSED_SPECULATION_MODEL_TAG if is_fused else TOKEN_GENERATION_MODEL_TAG
        self.models = [wrapper(self.config, tag) for tag in (CONTEXT_ENCODING_MODEL_TAG, generation)]
        self.context_encoding_model, self.token_generation_model = self.models
        self.is_loaded_to_neuron = False

    @classmethod
    def get_config_cls(cls):
        return InferenceConfig

    @classmethod
    def get_neuron_config_cls(cls):
        return NeuronConfig

    @classmethod
    def update_state_dict_for_tied_weights(cls, state_dict):
        state_dict["lm_head.weight"] = state_dict["embed_tokens.weight"].clone()

    def compile(self, compiled_model_path, debug=False, pre_shard_weights_hook=None, dry_run=False):
        """Config first, then the graphs, then the weights: a crash in between leaves the first without the rest."""
        directory = Path(compiled_model_path)
        self.config.save(directory)
        work = Path(os.environ.get("BASE_COMPILE_WORK_DIR", "/tmp/nxd_model/"))
        work.mkdir(parents=True, exist_ok=True)
        if self._model_cls is None:
            raise NotImplementedError(f"{type(self).__name__} has no arithmetic here")
        shapes = {model.tag: model.neuron_config.buckets for model in self.models}
        self._trace(work, shapes)
        torch.save({"shapes": shapes}, directory / "model.pt")
        if self.neuron_config.save_sharded_checkpoint and not self.neuron_config.skip_sharding:
            self._save_shards(directory / "weights", self._whole_state(self.model_path), self.neuron_config)

    def _trace(self, work, shapes):
        """Fails as often as STANDIN_COMPILER_FAILURES says, leaving the compiler's log behind."""
        for tag, buckets in shapes.items():
            if self.neuron_config.sequence_parallel_enabled and tag == CONTEXT_ENCODING_MODEL_TAG:
                assert all(bucket % self.neuron_config.tp_degree == 0 for bucket in buckets)
            window = getattr(self.config, "sliding_window", None) if self._keeps_a_window else None
            if window and tag == CONTEXT_ENCODING_MODEL_TAG and buckets[0] < window:
                raise RuntimeError(f"index {buckets[0]} is out of bounds for dimension 2 with size {buckets[0]}")
            for rank in range(len(buckets)):
                place = work / tag / f"_tp0_bk{rank}"
                if place.exists():
                    raise RuntimeError(f"{place} is in use by another compilation")
                place.mkdir(parents=True)
                self._maybe_fail(place)
                (place / "graph.neff").write_bytes(b"")

    def _maybe_fail(self, place):
        left = int(os.environ.get("STANDIN_COMPILER_FAILURES", "0"))
        if left:
            os.environ["STANDIN_COMPILER_FAILURES"] = str(left - 1)
            (place / "log-neuron-cc.txt").write_text(
                f"INFO: start\nERROR: failure number {left}: out of SBUF\nERROR: a consequence\n"
            )
            raise RuntimeError(f"neuronx-cc failed with 70 (failure number {left})")

    def _save_shards(self, directory, state, neuron_config):
        """One file a rank; ranks beyond the degree hold what the first ones do."""
        directory.mkdir()
        degree = neuron_config.tp_degree
        for rank in range(neuron_config.local_ranks_size):
            shard = {name: _shard(value, rank % degree, degree) for name, value in state.items()}
            save_file(shard, directory / f"tp{rank}_sharded_checkpoint.safetensors")

    def _whole_state(self, path):
        """Of fused speculation both models' weights, under prefixes."""
        fused = self.config.fused_spec_config
        if fused is None:
            return self.get_state_dict(path)
        draft = (fused.draft_model_cls or type(self))(fused.draft_model_path, fused.draft_config)
        drafts = draft.get_state_dict(fused.draft_model_path)
        states = {"draft_model": drafts, "target_model": self.get_state_dict(path)}
        return {f"{prefix}.{name}": value for prefix, state in states.items() for name, value in state.items()}

    def get_state_dict(self, path):
        """Weights under NxD's names, from the safetensors files of a checkpoint."""
        files = sorted(Path(path).glob("*.safetensors"))
        if not files:
            raise FileNotFoundError(f"Can not find model.safetensors or pytorch_model.bin in {path}")
        state = {}
        for file in files:
            state |= {name.removeprefix("model."): value for name, value in load_file(file).items()}
        if getattr(self.config, "tie_word_embeddings", False):
            self.update_state_dict_for_tied_weights(state)
        return {name: value.to(self.neuron_config.torch_dtype) for name, value in state.items()}

    def load(self, compiled_model_path, start_rank_id=None, local_ranks_size=None, skip_warmup=False):
        directory = Path(compiled_model_path)
        if not (directory / "model.pt").exists():
            raise FileNotFoundError(f"{directory / 'model.pt'}")
        try:
            graph = torch.load(directory / "model.pt")
        except Exception as error:
            raise RuntimeError(f"PytorchStreamReader failed reading zip archive: {error}") from None
        self._take_cores()
        for model in self.models:
            model.neuron_config.buckets = graph["shapes"][model.tag]
        state = self._load_weights(directory)
        if self.neuron_config.enable_fused_speculation:
            self._load_fused(state)
            return
        network = self._model_cls(self.config, state)
        sampler = Sampler(self.config) if self.neuron_config.on_device_sampling_config else None
        for model in self.models:
            run = network.run_blocks if self.neuron_config.is_block_kv_layout else network.run
            model.graph = partial(run, sampler=sampler)
        self.is_loaded_to_neuron = True

    def _load_fused(self, state):
        assert self.neuron_config.on_device_sampling_config
        fused = self.config.fused_spec_config
        worker = fused.draft_model_cls._model_cls if fused.draft_model_cls else fused.worker_cls
        assert not fused.draft_config.neuron_config.enable_fused_speculation
        assert fused.draft_config.neuron_config.is_eagle_draft == self.neuron_config.enable_eagle_speculation
        networks = [
            network(config, {name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)})
            for network, config, prefix in (
                (worker, fused.draft_config, "draft_model."),
                (fused.worker_cls, self.config, "target_model."),
            )
        ]
        for model in self.models:
            model.graph = FusedSpecModel(self.config, *networks) if model is self.models[0] else self.models[0].graph
        self.is_loaded_to_neuron = True

    def _take_cores(self):
        """As many as the runtime was told to show when it was first imported."""
        import torch_neuronx

        seen = torch_neuronx.ENVIRONMENT_AT_IMPORT
        shown = int(seen.get("NEURON_RT_NUM_CORES", "1"))
        if seen.get("NEURON_RT_VISIBLE_CORES"):
            shown = 0
            for part in seen["NEURON_RT_VISIBLE_CORES"].split(","):
                first, _, last = part.partition("-")
                shown += int(last or first) - int(first) + 1
        wanted = self.neuron_config.local_ranks_size
        if shown < wanted or os.environ.get("STANDIN_CORES_HELD"):
            why = f"NeuronCore(s) not available - Requested:{wanted} Available:0"
            raise RuntimeError(f"nrt_allocate_neuron_cores: {why}")

    def _load_weights(self, directory):
        degree = self.neuron_config.tp_degree
        files = [directory / "weights" / f"tp{rank}_sharded_checkpoint.safetensors" for rank in range(degree)]
        if self.neuron_config.save_sharded_checkpoint:
            shards = [load_file(file) for file in files]
            return {name: _join([shard[name] for shard in shards]) for name in shards[0]}
        origin = getattr(self.config, "_name_or_path", "")
        return self._whole_state(origin if origin and Path(origin).exists() else directory)


def _shard(value, rank, degree):
    if value.shape[0] % degree:
        return value.clone() if rank == 0 else value[:0].clone()
    return value.chunk(degree)[rank].clone()


def _join(shards):
    return torch.cat(shards)


class NeuronBaseForCausalLM(NeuronApplicationBase):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if at_least(0, 8) and self.neuron_config.chunked_prefill_config is not None:
            raise NotImplementedError("chunked prefill is no longer supported")

    def __call__(self, *args, **kwargs):
        return self.forward(*args, **kwargs)

    def forward(
        self,
        input_ids=None,
        seq_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        sampling_params=None,
        prev_hidden=None,
        labels=None,
        use_cache=None,
        output_attentions=None,
        output_hidden_states=None,
        adapter_ids=None,
        medusa_args=None,
        return_dict=None,
        llava_args=None,
        input_capture_hook=None,
        slot_mapping=None,
        block_table=None,
        full_context_lens=None,
        computed_context_lens=None,
        tf_args=None,
        tensor_capture_hook=None,
    ):
        rows = input_ids.shape[0]
        return self._forward(
            input_ids,
            seq_ids,
            attention_mask,
            position_ids,
            sampling_params,
            torch.zeros(rows, dtype=torch.int32) if adapter_ids is None else adapter_ids,
            (slot_mapping, block_table, full_context_lens, computed_context_lens),
        )

    def _forward(
        self, input_ids, seq_ids, attention_mask, position_ids, sampling_params, adapter_ids, blocks, vision=()
    ):
        rows = input_ids.shape[0]
        if attention_mask is None and self.neuron_config.chunked_prefill_config is None:
            attention_mask = self._infer_attention_mask(position_ids)
        if seq_ids is None:
            seq_ids = torch.arange(rows)
        if sampling_params is None:
            sampling_params = torch.ones((self.neuron_config.batch_size, 3))
        sampling = self.neuron_config.on_device_sampling_config
        if sampling is not None:
            validate_sampling_params(sampling_params, sampling)
            sampling_params = infer_sampling_params(sampling_params)
        if not self.is_loaded_to_neuron:
            raise RuntimeError("Forward called before load. Run load() or load_state_dict() making calling forward")
        if self.neuron_config.chunked_prefill_config is not None:
            return self._outputs(self._run_chunk(input_ids, position_ids, seq_ids, sampling_params, *blocks))
        is_prefill = int(position_ids.min()) == 0
        if self.neuron_config.is_prefix_caching:
            is_prefill = is_prefill and input_ids.shape[-1] > 1
        model = self.context_encoding_model if is_prefill else self.token_generation_model
        if self.neuron_config.is_prefix_caching:
            _, block_table, full_context_lens, computed_context_lens = blocks
            assert full_context_lens.shape == computed_context_lens.shape == (rows, 1)
            assert block_table.shape[1] == self.neuron_config.max_length // self.neuron_config.pa_block_size
            return self._outputs(model.forward(input_ids, position_ids, seq_ids, sampling_params, *blocks))
        return self._outputs(
            model.forward(input_ids, attention_mask, position_ids, seq_ids, sampling_params, adapter_ids, *vision)
        )

    def _run_chunk(self, input_ids, position_ids, seq_ids, sampling_params, slots, table, full, computed):
        """The program for chunks if any sequence has several tokens, else that for token generation."""
        num_seqs = full.shape[0]
        assert full.shape == computed.shape == (num_seqs,) and table.shape[0] == num_seqs
        assert input_ids.shape == position_ids.shape == (1, int((full - computed).sum())) and seq_ids.shape == (1,)
        is_chunk = bool(((full - computed) > 1).any())
        model = self.context_encoding_model if is_chunk else self.token_generation_model
        if not is_chunk:
            most = self.neuron_config.chunked_prefill_config.max_num_seqs
            seq_ids, sampling_params = seq_ids.expand(most), sampling_params.expand(most, 3)
        result = model.forward(input_ids, position_ids, seq_ids, sampling_params, slots, table, full, computed)
        on_device = self.neuron_config.on_device_sampling_config is not None
        return result[:num_seqs] if on_device else result.transpose(0, 1)

    def _infer_attention_mask(self, position_ids):
        """Prefill: columns up to the row's positions. Decode, and prompts of one token: columns before them."""
        if position_ids.shape[-1] > 1:
            return (position_ids >= torch.arange(position_ids.shape[-1])).int()
        return (torch.arange(int(position_ids.max())) < position_ids).int()

    def _outputs(self, result):
        if self.neuron_config.enable_fused_speculation:
            output = CausalLMOutputWithPast(None, result)
            output.fused_outputs, output.async_should_stop = result, False
            return output
        on_device = self.neuron_config.on_device_sampling_config is not None
        output = CausalLMOutputWithPast(None if on_device else result, result)
        output.tokens = result
        return output
