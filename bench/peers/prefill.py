"""Causal prefill attention of one layer by PyTorch's SDPA backends: the peer of prefill_bench's
dense rows. A whole prompt at once, or its last rows with the rest as history (a mask aligned to the
lower right corner)."""

import torch
import torch.nn.functional as F
from torch.nn.attention import sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

import common
from decode import BACKENDS


def rows(shape, lengths, last, runs):
    """last: rows at the end of the prompt that attend; 0: all."""
    q_heads, kv_heads, dim = common.SHAPES[shape][:3]
    result = []
    for tokens in lengths:
        count = min(last or tokens, tokens)
        q, k, v = (
            torch.randn(1, heads, size, dim, dtype=torch.bfloat16, device="cuda")
            for heads, size in ((q_heads, count), (kv_heads, tokens), (kv_heads, tokens))
        )
        flop = 4 * dim * q_heads * (count * (tokens - count) + count * (count + 1) / 2)
        if count < tokens:
            causal = {"attn_mask": causal_lower_right(count, tokens)}
        else:
            causal = {"is_causal": True}
        for name, backend in BACKENDS.items():

            def work(i):
                with sdpa_kernel(backend):
                    return F.scaled_dot_product_attention(
                        q, k, v, enable_gqa=q_heads != kv_heads, **causal
                    )

            row = {
                "kind": "prefill", "peer": name, "shape": shape, "length": tokens,
                "last_rows": count if last else 0, "mode": "dense",
            }
            if name == "cudnn" and count < tokens:
                row["reason"] = "PyTorch has no causal mask aligned to the lower right for it"
            elif (seconds := common.attempt(row, work, runs=runs)) is not None:
                row["tflops"] = flop / seconds / 1e12
            common.show(row, f"prefill {shape} {tokens} last {count} {name}")
            result.append(row)
        del q, k, v
        torch.cuda.empty_cache()
    return result
