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
