"""Fused speculation: a draft and its target behind one program, over contiguous KV."""

import torch

from neuronx_distributed_inference import at_least
from neuronx_distributed_inference.models.model_wrapper import FUSED_SPECULATION_MODEL_TAG


def padding():
    """What stands behind the accepted tokens of a row: a token id in versions up to 0.7."""
    return -1 if at_least(0, 8) else 0


class FusedSpecModel:
    """Runs as the graph of both sub-models. EAGLE drafts remember each line's last position, as its hidden states."""

    def __init__(self, config, draft, target):
        self.length = config.neuron_config.speculation_length
        self.draft, self.target = draft, target
        self.is_eagle = config.neuron_config.enable_eagle_speculation
        self.remembered = torch.full((config.neuron_config.max_batch_size,), -1)

    @torch.inference_mode()
    def __call__(self, wrapper, input_ids, attention_mask, position_ids, seq_ids, sampling_params, adapter_ids):
        if wrapper.tag == FUSED_SPECULATION_MODEL_TAG:
            return self._decode(wrapper, input_ids, attention_mask, position_ids, seq_ids, sampling_params, adapter_ids)
        arguments = (input_ids, attention_mask, position_ids, seq_ids, sampling_params, adapter_ids)
        self.draft.run(wrapper, *arguments, sampler=None)
        logits = self.target.run(wrapper, *arguments, sampler=None)
        accepted = torch.full((len(input_ids), self.length), padding(), dtype=torch.int32)
        accepted[:, 0] = logits[:, -1].argmax(-1)
        positions = attention_mask.sum(1, keepdim=True).int()
        self.remembered[seq_ids.long()] = positions[:, 0].long()
        return [accepted, accepted[:, :1], None, positions]

    def _decode(self, wrapper, input_ids, attention_mask, position_ids, seq_ids, sampling_params, adapter_ids):
        candidates, mask = [input_ids], attention_mask.clone()
        for step in range(self.length):
            arguments = (candidates[-1], mask, position_ids + step, seq_ids, sampling_params, adapter_ids)
            drafted = self.draft.run(wrapper, *arguments, sampler=None)[:, -1].argmax(-1, keepdim=True).int()
            mask = mask.scatter(1, (position_ids + step).long(), 1)
            candidates.append(self._remembering(drafted, position_ids, seq_ids))
        given = torch.cat(candidates[:-1], 1)
        positions = position_ids + torch.arange(self.length)
        arguments = (given, attention_mask, positions, seq_ids, sampling_params, adapter_ids)
        chosen = self.target.run(wrapper, *arguments, sampler=None, every_column=True).argmax(-1).int()
        matches = (given[:, 1:] == chosen[:, :-1]).int().cumprod(1).sum(1, keepdim=True) + 1
        accepted = torch.where(torch.arange(self.length) < matches, chosen, padding()).int()
        next_positions = (position_ids + matches).int()
        live = seq_ids >= 0
        self.remembered[seq_ids[live].long()] = next_positions[live, 0].long()
        return [accepted, accepted.gather(1, matches.long() - 1), None, next_positions]

    def _remembering(self, drafted, position_ids, seq_ids):
        """Where hidden states are of another sequence, or of an earlier step, an EAGLE head guesses nothing right."""
        if not self.is_eagle:
            return drafted
        known = self.remembered[seq_ids.long()] == position_ids[:, 0]
        return torch.where(known[:, None], drafted, 0).int()
