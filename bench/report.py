#!/usr/bin/env python3
"""Joins result files of the kernel benchmarks and of their peers into one table:
    bench/report.py [--brief] RESULT.json...
A row: ours in us, the fastest peer on the same shape, our speed over the peer's, and the share of
the ceiling that bounds the row (memory, or the product of bf16 matrices). Sparse rows stand beside
the dense peer. --brief leaves out what no stated aim names."""

import json
import sys

KEYS = {  # what makes a row and a peer's the same
    "decode": ("shape", "length", "batch"),
    "prefill": ("shape", "length", "last_rows"),
    "linear": ("shape", "layer", "row_kind", "rows"),
}


def key(row):
    return (row["kind"],) + tuple(row[name] for name in KEYS[row["kind"]])


def label(row):
    if row["kind"] == "decode":
        return f"decode {row['shape']} {row['length']} x {row['batch']} {row['format']} " + row[
            "selection"
        ]
    if row["kind"] == "prefill":
        last = f" last {row['last_rows']}" if row["last_rows"] else ""
        return f"prefill {row['shape']} {row['length']}{last} {row['mode']}"
    return f"linear {row['shape']} {row['layer']} {row['row_kind']} x {row['rows']}"


def in_brief(row):
    if row["kind"] == "decode":
        shortest = 32768 if row["format"] == "bf16" else 131072
        return row["shape"] == "llama-3-8b" and row["length"] >= shortest and row["batch"] <= 8
    return row["kind"] == "prefill" or row["rows"] in (1, 8, 2048)


def main():
    brief = "--brief" in sys.argv[1:]
    ours, best = [], {}
    for path in [argument for argument in sys.argv[1:] if argument != "--brief"]:
        with open(path, encoding="utf-8") as file:
            result = json.load(file)
        ceilings = result["ceilings"]
        print(
            f"{path.split('/')[-1]}: {result.get('commit', 'torch ' + result.get('torch', '?'))}, "
            f"{result['device']}; copy {ceilings['copy_gbps']:.0f}, read {ceilings['read_gbps']:.0f}"
            f" GB/s, bf16 product {ceilings['bf16_product_gflops'] / 1e3:.0f} TFLOP/s"
        )
        for row in result["rows"]:
            if "peer" not in row:
                ours.append(row)
            elif "us" in row and row["us"] < best.get(key(row), {"us": float("inf")})["us"]:
                best[key(row)] = row
    print(f"{'':54s} {'ours us':>10s} {'peer us':>10s} {'speed':>7s} {'ceiling':>8s}  peer")
    for row in ours:
        if brief and not in_brief(row):
            continue
        if "us" not in row:
            print(f"{label(row):54s} {row['skipped']}")
            continue
        peer = best.get(key(row))
        prefill = row["kind"] == "prefill" or row.get("row_kind") == "prefill"
        share = row["share_of_bf16_product" if prefill else "share_of_memory"]
        line = f"{label(row):54s} {row['us']:10.1f} "
        line += f"{peer['us']:10.1f} {peer['us'] / row['us']:6.2f}x" if peer else " " * 18
        line += f" {100 * share:7.0f}%"
        if peer:
            line += f"  {peer['peer']}"
        if row.get("select_us"):
            line += f"  select {row['select_us']:.1f}, attend {row['attend_us']:.1f}"
        if "share_of_promise" in row:
            line += f"  {row['speed_up']:.2f}x, {100 * row['share_of_promise']:.0f}% of promised"
        print(line)


if __name__ == "__main__":
    main()
