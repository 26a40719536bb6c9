"""Linear layers by torch.nn.functional.linear (cuBLAS) in bf16: the peer of linear_bench. It
computes the products alone, without the epilogues that linear_bench's rows have."""

import torch
import torch.nn.functional as F

import common


def layers_of(shape):
    q_heads, kv_heads, dim, hidden, intermediate, vocabulary = common.SHAPES[shape]
    return {
        "qkv": ((q_heads + 2 * kv_heads) * dim, hidden),
        "o": (hidden, q_heads * dim),
        "gate_up": (2 * intermediate, hidden),
        "down": (hidden, intermediate),
        "lm_head": (vocabulary, hidden),
    }


def rows(shape, decode_rows, prefill_rows, runs):
    result = []
    weights = {}

    def measure(layer, kind, count, names):
        copies = max(len(weights[name]) for name in names)
        inputs = [
            torch.randn(count, weights[name][0].shape[1], dtype=torch.bfloat16, device="cuda")
            for name in names
        ]

        def work(i):
            for x, name in zip(inputs, names):
                F.linear(x, weights[name][i % len(weights[name])])

        row = {
            "kind": "linear", "peer": "cublas", "shape": shape, "layer": layer,
            "row_kind": kind, "rows": count,
        }
        if (seconds := common.attempt(row, work, cycle=copies, runs=runs)) is not None:
            elements = sum(weights[name][0].numel() for name in names)
            moved = sum(x.numel() + count * weights[n][0].shape[0] for x, n in zip(inputs, names))
            row["gbps"] = 2 * (elements + moved) / seconds / 1e9
            row["tflops"] = 2 * count * elements / seconds / 1e12
        common.show(row, f"linear {shape} {layer} {kind} {count}")
        result.append(row)

    for name, (columns, depth) in layers_of(shape).items():
        weights[name] = [
            torch.randn(columns, depth, dtype=torch.bfloat16, device="cuda") / depth**0.5
            for _ in range(common.rotated(2 * columns * depth, most=16))
        ]
        for count in decode_rows:
            measure(name, "decode", count, [name])
        if name == "lm_head":
            del weights[name]
            continue
        for count in prefill_rows:
            measure(name, "prefill", count, [name])
    for count in decode_rows:
        measure("layer", "decode", count, list(weights))
    for count in prefill_rows:
        measure("layer", "prefill", count, list(weights))
    return result
