"""On-device sampling as the compiled sampler does it."""

import torch

from neuronx_distributed_inference import at_least

MASKED = -3000.0


def prepare_sampling_params(batch_size, top_k=None, top_p=None, temperature=None):
    columns = [torch.tensor(given if given is not None else [1.0]) for given in (top_k, top_p, temperature)]
    columns = [column.broadcast_to(batch_size) if len(column) == 1 else column for column in columns]
    return torch.stack(columns, dim=1).float()


def validate_sampling_params(params, on_device_sampling_config):
    if params.shape[1] != 3:
        raise ValueError("sampling_params must have three columns: top_k, top_p, temperature")
    for top_k, top_p, temperature in params.tolist():
        least = 0 if at_least(0, 6) else 1
        if not (top_k == -1 or (float(top_k).is_integer() and least <= top_k <= on_device_sampling_config.global_topk)):
            raise ValueError(f"Invalid top-k value found: {top_k}")
        if not 0 < top_p <= 1:
            raise ValueError(f"Invalid top-p value found: {top_p}")
        if temperature < 0 or (temperature == 0 and not at_least(0, 6)):
            raise ValueError(f"Invalid temperature value found: {temperature}")
        if temperature == 0 and top_k in (-1, 0):
            raise ValueError("temperature 0 with top_k disabled")


def infer_sampling_params(params):
    """Greedy rows (temperature 0) become top_k 1, in place."""
    greedy = params[:, 2] == 0
    params[greedy] = torch.tensor([1.0, 1.0, 1.0])
    return params


class Sampler:
    def __init__(self, config):
        self.config = config.neuron_config.on_device_sampling_config
        self.vocab_size = config.vocab_size
        if (self.config.do_sample or self.config.dynamic) and self.config.global_topk > self.vocab_size:
            raise RuntimeError("selected index k out of range")

    def __call__(self, logits, params):
        """int32 [B] from [B, V]: candidates are the global_topk best; the token that crosses top_p is dropped."""
        if not (self.config.do_sample or self.config.dynamic):
            return logits.argmax(dim=-1).int()
        values, ids = torch.topk(logits, self.config.global_topk, dim=-1)
        if not self.config.dynamic:
            static = [self.config.top_k, self.config.top_p, self.config.temperature]
            params = torch.tensor([static]).expand(len(logits), 3)
        top_k, top_p, temperature = params[:, :1], params[:, 1:2], params[:, 2:]
        order = torch.arange(values.shape[1])
        values = torch.where(order >= top_k, torch.tensor(MASKED), values) / temperature
        probabilities = values.softmax(dim=-1)
        beyond = (probabilities.cumsum(dim=-1) > top_p) & (order > 0)
        values = torch.where(beyond, torch.tensor(MASKED), values)
        cumulative = values.softmax(dim=-1).cumsum(dim=-1)
        draws = torch.full((len(logits), 1), 0.5) if self.config.deterministic else torch.rand(len(logits), 1)
        chosen = (cumulative < draws).sum(dim=-1, keepdim=True).clamp(max=values.shape[1] - 1)
        return ids.gather(1, chosen)[:, 0].int()
