"""Bucket lists: powers of two from `lo`, without those within sqrt(2) of `hi`, then `hi`."""

from math import ceil, log2


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


def generate_chunk_buckets(config):
    """Pairs of chunked prefill: tokens of the chunk, tiles of the grid of its queries and their cached tokens."""
    neuron, chunked = config.neuron_config, config.neuron_config.chunked_prefill_config
    query_tiles = ceil(neuron.max_context_length / chunked.kernel_q_tile_size)
    sizes = [chunked.kernel_q_tile_size * (i + 1) for i in range(query_tiles)]
    most = query_tiles * ceil(neuron.max_length * chunked.max_num_seqs / chunked.kernel_kv_tile_size)
    tiles = sorted({1, most // 2, most}) if most >= 4 else [most]
    chosen = sorted({sizes[0], sizes[(len(sizes) - 1) // 2], sizes[-1]})
    return [[size, count] for size in chosen for count in tiles]
