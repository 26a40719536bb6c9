"""Dense decode attention of one layer by PyTorch's SDPA backends, and by FlashInfer and flash-attn
where they are installed: the peers of decode_bench's dense rows.

Each SDPA backend gets the query in two forms: `gqa`, one query a query head (enable_gqa), and
`folded`, the queries of a group as rows of one attention without a mask, which is the same
computation and reads each key once a group.
"""

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import common

BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def sdpa_peers(q, keys, values):
    """(name, work) of the SDPA backends. q: [batch, q heads, 1, dim]; keys, values: lists of
    [batch, kv heads, tokens, dim]."""
    batch, q_heads, _, dim = q.shape
    kv_heads = keys[0].shape[1]
    folded = q.view(batch, kv_heads, q_heads // kv_heads, dim)

    def work_of(backend, query, gqa):
        def work(i):
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(
                    query, keys[i % len(keys)], values[i % len(keys)], enable_gqa=gqa
                )

        return work

    for name, backend in BACKENDS.items():
        if q_heads == kv_heads:
            yield name, work_of(backend, q, False)
        else:
            yield f"{name} gqa", work_of(backend, q, True)
            yield f"{name} folded", work_of(backend, folded, False)


def flash_attn_peer(q, keys, values):
    """flash-attn's split-KV decode, if installed. It takes [batch, tokens, heads, dim]."""
    from flash_attn import flash_attn_with_kvcache

    query = q.transpose(1, 2).contiguous()
    shape = (q.shape[0], keys[0].shape[2], keys[0].shape[1], keys[0].shape[3])
    caches = [(k.view(shape), v.view(shape)) for k, v in zip(keys, values)]
    return lambda i: flash_attn_with_kvcache(query, *caches[i % len(caches)])


def flashinfer_peer(q, keys, values):
    """FlashInfer's batch decode over pages of 16 tokens, if installed."""
    import flashinfer

    batch, q_heads, _, dim = q.shape
    kv_heads, tokens = keys[0].shape[1:3]
    page = 16
    pages = tokens // page
    workspace = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        workspace, "NHD", use_tensor_cores=True
    )
    wrapper.plan(
        torch.arange(batch + 1, dtype=torch.int32, device="cuda") * pages,
        torch.arange(batch * pages, dtype=torch.int32, device="cuda"),
        torch.full((batch,), page, dtype=torch.int32, device="cuda"),
        q_heads, kv_heads, dim, page,
        q_data_type=torch.bfloat16, kv_data_type=torch.bfloat16,
    )
    shape = (batch * pages, page, kv_heads, dim)
    caches = [(k.view(shape), v.view(shape)) for k, v in zip(keys, values)]
    query = q.view(batch, q_heads, dim)
    return lambda i: wrapper.run(query, caches[i % len(caches)])


def other_peers(q, keys, values):
    for name, make in (("flash-attn", flash_attn_peer), ("flashinfer", flashinfer_peer)):
        try:
            yield name, make(q, keys, values), None
        except Exception as error:  # not installed, or it refuses the shape
            yield name, None, f"{type(error).__name__}: {error}"[:200]


def rows_of(shape, batch, tokens, runs):
    q_heads, kv_heads, dim = common.SHAPES[shape][:3]
    byte_count = 2 * batch * kv_heads * tokens * dim * 2
    row = {
        "kind": "decode", "shape": shape, "length": tokens, "batch": batch, "format": "bf16",
        "q_heads": q_heads, "kv_heads": kv_heads, "head_dim": dim, "bytes": byte_count,
    }
    if byte_count > 0.8 * torch.cuda.mem_get_info()[0]:
        return [row | {"peer": "sdpa", "reason": f"{byte_count} bytes do not fit"}]
    copies = common.rotated(byte_count)
    make = lambda *size: torch.randn(*size, dtype=torch.bfloat16, device="cuda")
    keys = [make(batch, kv_heads, tokens, dim) for _ in range(copies)]
    values = [make(batch, kv_heads, tokens, dim) for _ in range(copies)]
    q = make(batch, q_heads, 1, dim)
    rows = []
    peers = [(name, work, None) for name, work in sdpa_peers(q, keys, values)]
    for name, work, reason in peers + list(other_peers(q, keys, values)):
        entry = row | {"peer": name, "copies": copies}
        if work is None:
            entry["reason"] = reason
        elif (seconds := common.attempt(entry, work, cycle=copies, runs=runs)) is not None:
            entry["gbps"] = byte_count / seconds / 1e9
        common.show(entry, f"decode {shape} {tokens} x {batch} {name}")
        rows.append(entry)
    return rows


def rows(shape, lengths, batches, runs):
    result = []
    for batch in batches:
        for tokens in lengths:
            result += rows_of(shape, batch, tokens, runs)
            torch.cuda.empty_cache()
    return result
