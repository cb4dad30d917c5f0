"""One compiled sub-model under prefix caching: pairs of buckets, tokens pulled back from the prefix, block tables."""

import torch
from torch.nn.functional import pad

from neuronx_distributed_inference.models.model_wrapper import ModelWrapper
from neuronx_distributed_inference.modules.autobucketing import (
    generate_prefix_buckets_for_cte,
    generate_prefix_buckets_for_tkg,
)


class PrefixCachingWrapper(ModelWrapper):
    def __init__(self, config, tag):
        super().__init__(config, tag)
        make = generate_prefix_buckets_for_cte if self.is_context_encoding else generate_prefix_buckets_for_tkg
        self.neuron_config.buckets = make(config)

    def forward(self, *args):
        args = [value.int() if value.dtype == torch.int64 else value for value in args]
        if not self.is_context_encoding:
            return self._token_generation(*args)
        rows = range(args[0].shape[0])
        return torch.cat([self._context_encoding(*(value[i : i + 1] for value in args)) for i in rows])

    def _context_encoding(self, input_ids, position_ids, seq_ids, sampling_params, slots, table, full, computed):
        total, cached = int(full), int(computed)
        assert cached < total, "nothing to compute"
        prefill, prefix = self._prefill_bucket(total, cached)
        first = max(0, cached - (prefill - (total - cached)))
        assert first <= prefix, "the prefix exceeds its bucket"
        spare = (0, prefill - (total - first))
        active = slots[:, : total - cached]
        arguments = {
            "input_ids": pad(input_ids[:, first:total], spare, value=self.config.pad_token_id or 0),
            "position_ids": pad(position_ids[:, first:total], spare, value=1),
            "slots": pad(active, (cached - first, spare[1]), value=-1),
            "table": self._fit_table(table, prefix),
            "mask": (torch.arange(prefix)[None] < first).int(),
        }
        self.executed.append({"tag": self.tag, "bucket": [prefill, prefix], "computed": total - first})
        return self.graph(self, sampling_params=sampling_params, **arguments)

    def _prefill_bucket(self, total, cached):
        buckets = self.neuron_config.buckets
        if 256 < total <= 512 and [512, 0] in buckets:
            return 512, 0
        fitting = [prefill for prefill, _ in buckets if prefill >= total - cached]
        if not fitting:
            raise ValueError(f"{total - cached} tokens exceed the largest prefill bucket")
        prefill = min(fitting)
        left = max(0, cached - (prefill - (total - cached)))
        prefixes = [prefix for size, prefix in buckets if size == prefill and prefix >= left]
        assert prefixes, "no prefix bucket"
        return prefill, min(prefixes)

    def _token_generation(self, input_ids, position_ids, seq_ids, sampling_params, slots, table, full, computed):
        longest = int(computed.max())
        fitting = [length for _, length in self.neuron_config.buckets if length > longest]
        if not fitting:
            raise ValueError(f"a context of {longest} exceeds the largest bucket")
        rows, missing = input_ids.shape[0], self.neuron_config.batch_size - input_ids.shape[0]

        def fill(value):
            return torch.cat([value, value[:1].expand(missing, *value.shape[1:])])

        filled_slots = torch.cat([slots[:, :1], torch.full((missing, 1), -1, dtype=slots.dtype)])
        positions = fill(position_ids)
        self.executed.append({"tag": self.tag, "bucket": [1, fitting[0]], "computed": rows})
        result = self.graph(
            self,
            input_ids=fill(input_ids),
            position_ids=positions,
            slots=self._own_slots(positions, fill(table), filled_slots),
            table=self._fit_table(fill(table), fitting[0]),
            mask=(torch.arange(fitting[0])[None] < positions).int(),
            sampling_params=fill(sampling_params),
        )
        return result[:rows]

    def _own_slots(self, positions, table, given):
        """The device works slots out itself; the given ones only say which rows are real."""
        size = self.neuron_config.pa_block_size
        blocks = table.gather(1, (positions // size).long())
        return torch.where(given >= 0, blocks * size + positions % size, -1)

    def _fit_table(self, table, prefix):
        return pad(table, (0, prefix // self.neuron_config.pa_block_size - table.shape[1]))
