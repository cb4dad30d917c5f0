"""Bucket lists: powers of two from `lo`, without those within sqrt(2) of `hi`, then `hi`."""

from math import log2


def generate_buckets(min_length, max_length):
    if min_length == max_length:
        return [max_length]
    return [2**i for i in range(int(log2(min_length)), round(log2(max_length)))] + [max_length]


def generate_buckets_for_cte(config):
    neuron = config.neuron_config
    if not neuron.enable_bucketing:
        return [neuron.max_context_length]
    return neuron.context_encoding_buckets or generate_buckets(128, neuron.max_context_length)


def generate_buckets_for_tkg(config):
    neuron = config.neuron_config
    if not neuron.enable_bucketing:
        return [neuron.max_length]
    return neuron.token_generation_buckets or generate_buckets(128, neuron.max_length)


def generate_prefix_buckets_for_cte(config):
    """Pairs: tokens to compute, tokens of cached prefix."""
    neuron = config.neuron_config
    longest = neuron.max_context_length
    prefills = neuron.context_encoding_buckets or generate_buckets(512, longest)
    prefixes = neuron.prefix_buckets if neuron.context_encoding_buckets else generate_buckets(512, longest)
    return [[prefill, prefix] for prefill in prefills for prefix in [0, *prefixes]]


def generate_prefix_buckets_for_tkg(config):
    neuron = config.neuron_config
    return [[1, length] for length in neuron.token_generation_buckets or generate_buckets(256, neuron.max_length)]
