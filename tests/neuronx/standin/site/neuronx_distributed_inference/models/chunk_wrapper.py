"""The sub-models of chunked prefill: all sequences side by side in one row, or one token of each."""

import math

import torch
from torch.nn.functional import pad

from neuronx_distributed_inference.models.model_wrapper import ModelWrapper
from neuronx_distributed_inference.modules.autobucketing import generate_chunk_buckets


class ChunkedPrefillWrapper(ModelWrapper):
    def __init__(self, config, tag):
        super().__init__(config, tag)
        if self.is_context_encoding:
            self.neuron_config.buckets = generate_chunk_buckets(config)
        assert self.neuron_config.chunked_prefill_config.kernel_kv_tile_size % self.neuron_config.pa_block_size == 0

    def forward(self, input_ids, position_ids, seq_ids, sampling_params, slots, table, full, computed):
        queries = full - computed
        run = self._chunk if self.is_context_encoding else self._tokens
        return run(input_ids, position_ids, sampling_params, slots, table, queries, computed)

    def _chunk(self, input_ids, position_ids, sampling_params, slots, table, queries, computed):
        tokens, tiles = self._chunk_bucket(queries, computed)
        most = self.neuron_config.chunked_prefill_config.max_num_seqs
        spare = (0, tokens - input_ids.shape[1])
        size = self.neuron_config.pa_block_size
        owners = torch.repeat_interleave(torch.arange(len(queries)), queries)
        read, readers = [torch.zeros(0, dtype=torch.long)], [torch.zeros(0, dtype=torch.long)]
        for row, length in enumerate(computed.tolist()):
            positions = torch.arange(length)
            read.append(table[row][positions // size].long() * size + positions % size)
            readers.append(torch.full((length,), row))
        owners, readers = pad(owners, spare, value=-1), torch.cat(readers)
        same = (owners[:, None] == owners[None]) & torch.ones(tokens, tokens, dtype=torch.bool).tril()
        self.executed.append({"tag": self.tag, "bucket": [tokens, tiles], "computed": int(queries.sum())})
        return self.graph(
            self,
            input_ids=pad(input_ids, spare, value=self.config.pad_token_id or 0),
            position_ids=pad(position_ids, spare),
            slots=pad(slots, spare, value=-1)[None],
            read=torch.cat(read)[None],
            visible=torch.cat([owners[:, None] == readers[None], same], 1)[None],
            columns=pad(queries, (0, most - len(queries))).cumsum(0) - 1,
            sampling_params=pad(sampling_params, (0, 0, 0, most - len(sampling_params))),
        )

    def _chunk_bucket(self, queries, computed):
        chunked, size = self.neuron_config.chunked_prefill_config, self.neuron_config.pa_block_size
        kv = int((-(-computed // size) * size).sum())
        total = int(queries.sum())
        needed = math.ceil(total / chunked.kernel_q_tile_size) * math.ceil(kv / chunked.kernel_kv_tile_size)
        for tokens, tiles in self.neuron_config.buckets:
            if total <= tokens and needed <= tiles:
                return tokens, tiles
        raise ValueError(f"Can't find a bucket from {self.neuron_config.buckets} for {total} tokens, {needed} tiles")

    def _tokens(self, input_ids, position_ids, sampling_params, slots, table, queries, computed):
        most, size = self.neuron_config.batch_size, self.neuron_config.pa_block_size
        bucket = self.get_target_bucket(int(computed.max()))
        assert bucket % size == 0 and sampling_params.shape == (most, 3)
        missing = most - len(queries)

        def fill(value, by=0):
            return pad(value, (0, 0, 0, missing), value=by)

        blocks = fill(pad(table, (0, bucket // size - table.shape[1])))
        self.executed.append({"tag": self.tag, "bucket": bucket, "computed": len(queries)})
        mask = torch.arange(bucket)[None] < fill(computed[:, None])
        return self.graph(
            self,
            input_ids=fill(input_ids.reshape(-1, 1)),
            position_ids=fill(position_ids.reshape(-1, 1)),
            slots=fill(slots.reshape(-1, 1), -1),
            read=(blocks[:, :, None] * size + torch.arange(size)).flatten(1).long(),
            visible=torch.cat([mask, torch.ones(most, 1, dtype=torch.bool)], 1)[:, None],
            columns=None,
            sampling_params=sampling_params,
        )
