"""Whether the scheduler's books balance: rows, blocks, promises and the queue. For tests and debugging."""

from __future__ import annotations

from vllm.core.block_pool import BlockPool
from vllm.core.kv_traffic import KVTraffic
from vllm.core.request import Request, RequestQueue, RequestStatus


def find_faults(
    waiting: RequestQueue, running: dict[str, Request], traffic: KVTraffic, pool: BlockPool, max_num_seqs: int
) -> list[str]:
    """One sentence per fault."""
    loading = traffic.requests
    faults = pool.find_faults()
    if len(running) + len(loading) > max_num_seqs:
        faults.append(f"{len(running)} requests run and {len(loading)} load in {max_num_seqs} rows")
    faults += [f"{request} is in the queue" for request in waiting if request.status != RequestStatus.WAITING]
    waiting_tokens = sum(request.num_prompt_tokens for request in waiting)
    if waiting_tokens != waiting.num_tokens:
        faults.append(f"the queue counts {waiting.num_tokens} tokens but holds {waiting_tokens}")
    for place, status in ((running, RequestStatus.RUNNING), (loading, RequestStatus.WAITING_FOR_KV)):
        for request in place.values():
            if request.status is not status or request.req_id in waiting:
                faults.append(f"{request} is where requests are {status.name}")
    return faults + _block_faults([*running.values(), *loading.values()], traffic, pool)


def _block_faults(requests: list[Request], traffic: KVTraffic, pool: BlockPool) -> list[str]:
    refs = [0] * pool.num_blocks
    for block_id in traffic.held_blocks():
        refs[block_id] += 1
    for request in requests:
        for block_id in request.block_ids:
            refs[block_id] += 1
    faults = [
        f"block {block_id} is held {held} times by the pool's books, {refs[block_id]} times by requests and loads"
        for block_id, held in enumerate(pool.refs)
        if held != refs[block_id]
    ]
    num_promised = sum(request.max_num_blocks - len(request.block_ids) for request in requests)
    if num_promised != pool.num_promised:
        faults.append(f"{pool.num_promised} blocks are promised, {num_promised} to running requests")
    return faults
