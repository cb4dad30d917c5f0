"""One compiled sub-model: bucket choice, sequence padding, batch padding, and the call into the graph."""

import copy
import os

import torch

from neuronx_distributed_inference.modules.autobucketing import generate_buckets_for_cte, generate_buckets_for_tkg

CONTEXT_ENCODING_MODEL_TAG = "context_encoding_model"
TOKEN_GENERATION_MODEL_TAG = "token_generation_model"
FUSED_SPECULATION_MODEL_TAG = "fused_speculation_model"


class ModelWrapper:
    def __init__(self, config, tag):
        self.config = copy.copy(config)
        self.neuron_config = copy.copy(config.neuron_config)
        self.config.neuron_config = self.neuron_config
        self.tag = tag
        if tag == CONTEXT_ENCODING_MODEL_TAG:
            self.neuron_config.batch_size = self.neuron_config.ctx_batch_size
            self.neuron_config.buckets = generate_buckets_for_cte(config)
        else:
            self.neuron_config.batch_size = self.neuron_config.tkg_batch_size
            self.neuron_config.buckets = generate_buckets_for_tkg(config)
        self.graph = None
        self.executed = []

    @property
    def is_context_encoding(self):
        return self.tag == CONTEXT_ENCODING_MODEL_TAG

    def get_target_bucket(self, length):
        """The first bucket strictly greater; the largest also takes its own length."""
        buckets = self.neuron_config.buckets
        if self.tag == FUSED_SPECULATION_MODEL_TAG:
            length += self.neuron_config.speculation_length
        for bucket in buckets:
            if length < bucket:
                return bucket
        if length == buckets[-1] or self.neuron_config.allow_input_truncation:
            return buckets[-1]
        raise ValueError(f"Input len {length} exceeds largest bucket ({buckets[-1]}) for {self.tag}")

    def forward(self, input_ids, attention_mask, position_ids, seq_ids, sampling_params, adapter_ids, *vision):
        args = [input_ids, attention_mask, position_ids, seq_ids, sampling_params, adapter_ids, *vision]
        args = [value.int() if value.dtype == torch.int64 else value for value in args]
        size = self.neuron_config.batch_size
        if seq_ids.shape[0] > size:
            return self._forward_in_slices(args, size)
        args = self._pad_sequences(*args)
        if seq_ids.shape[0] == size:
            return self._execute(*args)
        return self._forward_with_pad(args)

    def _forward_in_slices(self, args, size):
        outputs = []
        for start in range(0, args[3].shape[0], size):
            piece = [value[start : start + size] for value in args]
            length = int(piece[2].max()) + 1
            if self.is_context_encoding:
                piece[:3] = [value[:, :length] for value in piece[:3]]
            outputs.append(self.forward(*piece))
        return torch.cat(outputs)

    def _pad_sequences(self, input_ids, attention_mask, position_ids, *rest):
        bucket = self.get_target_bucket(attention_mask.shape[1])

        def pad(value, fill):
            return torch.nn.functional.pad(value, (0, bucket - value.shape[1]), value=fill)

        if self.is_context_encoding:
            input_ids = pad(input_ids, self.config.pad_token_id or 0)
            position_ids = pad(position_ids, 1)
        return input_ids, pad(attention_mask, 0), position_ids, *rest

    def _forward_with_pad(self, args):
        """Every line of the batch is executed: missing ones with the first row's token and position."""
        seq_ids = args[3]
        present = seq_ids.tolist()
        absent = [line for line in range(self.neuron_config.batch_size) if line not in present]
        lines = torch.tensor(present + absent, dtype=seq_ids.dtype)
        order = torch.argsort(lines)
        padded = []
        for value in args:
            filler = value[:1].expand(len(absent), *value.shape[1:])
            padded.append(torch.cat([value, filler])[order])
        padded[3] = lines[order]
        if self.neuron_config.apply_seq_ids_mask:
            padded[3] = torch.where(torch.isin(padded[3], seq_ids), padded[3], -1)
        result = self._execute(*padded)
        if isinstance(result, list):
            return [each if each is None else each.index_select(0, seq_ids.long()) for each in result]
        return result.index_select(0, seq_ids.long())

    def _execute(self, input_ids, attention_mask, position_ids, seq_ids, sampling_params, adapter_ids):
        self.executed.append(
            {"tag": self.tag, "bucket": attention_mask.shape[1], "input_ids": input_ids, "seq_ids": seq_ids}
        )
        return self.graph(self, input_ids, attention_mask, position_ids, seq_ids, sampling_params, adapter_ids)

    def sampled_column(self, position_ids):
        """argmax(position_ids). Which of several equal maxima the device takes is not documented."""
        if os.environ.get("STANDIN_ARGMAX_TIES") == "last":
            return position_ids.shape[1] - 1 - position_ids.flip(1).argmax(dim=1)
        return position_ids.argmax(dim=1)
