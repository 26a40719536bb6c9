"""What the peers' benchmarks share: shapes, timing, ceilings and the result file.

Timing is that of graph_timer.h: repetitions are captured as one CUDA graph, which is launched and
waited for by the host's clock; the median of several launches counts, and nothing is subtracted.
Buffers are taken in turn, at least ROTATED_BYTES of them.
"""

import json
import statistics
import time

import torch

ROTATED_BYTES = 256 << 20
MAX_REPETITIONS = 512

# name: query heads, KV heads, head size, hidden, intermediate, vocabulary (bench/known_layers.h)
SHAPES = {
    "llama-3-8b": (32, 8, 128, 4096, 14336, 128256),
    "llama-2-7b": (32, 32, 128, 4096, 11008, 32000),
    "minitron-4b": (24, 8, 128, 3072, 9216, 256000),
}


def rotated(byte_count, most=64):
    """How many buffers of this size are taken in turn."""
    return max(1, min(most, -(-ROTATED_BYTES // byte_count)))


def median_seconds(work, cycle=1, run_seconds=4e-3, runs=7):
    """Median seconds of work(i); repetitions come in whole multiples of `cycle`."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())

    def captured(repetitions):
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            graph.capture_begin()
            try:
                for i in range(repetitions):
                    work(i)
            finally:
                graph.capture_end()
        return graph

    def seconds(graph):
        torch.cuda.synchronize()
        start = time.perf_counter()
        graph.replay()
        torch.cuda.synchronize()
        return time.perf_counter() - start

    with torch.cuda.stream(stream):  # libraries load and plan outside of a capture
        work(0)
    torch.cuda.synchronize()
    graph = captured(cycle)
    seconds(graph)
    once = seconds(graph)
    cycles = max(1, min(int(run_seconds / once + 1), MAX_REPETITIONS // cycle))
    if cycles > 1:
        graph = captured(cycles * cycle)
        seconds(graph)
    return statistics.median(seconds(graph) for _ in range(runs)) / (cycles * cycle)


def attempt(row, work, **timing):
    """Adds `us` to the row, or the `reason` why the peer does not run it. Returns the seconds."""
    try:
        seconds = median_seconds(work, **timing)
    except Exception as error:  # a refusal is a result, whatever its type
        row["reason"] = " ".join(str(error).split())[:200] or type(error).__name__
        torch.cuda.synchronize()
        return None
    row["us"] = seconds * 1e6
    return seconds


def ceilings():
    """Copy and read bandwidth in GB/s, product of bf16 matrices in GFLOP/s, on random data."""
    data = torch.empty(1 << 30, dtype=torch.int32, device="cuda")
    data.random_()
    half = data.numel() // 2
    copy = median_seconds(lambda i: data[:half].copy_(data[half:]))
    read = median_seconds(lambda i: torch.max(data))
    byte_count = data.numel() * 4
    del data
    size = 8192
    a = torch.randn(size, size, dtype=torch.bfloat16, device="cuda")
    b = torch.randn(size, size, dtype=torch.bfloat16, device="cuda")
    product = median_seconds(lambda i: torch.matmul(a, b.t()), run_seconds=20e-3)
    return {
        "bf16_product_gflops": 2 * size**3 / product / 1e9,
        "copy_gbps": byte_count / copy / 1e9,
        "read_gbps": byte_count / read / 1e9,
    }


def show(row, label):
    result = f"{row['us']:10.1f} us" if "us" in row else f"refused: {row['reason']}"
    print(f"{label:64s} {result}", flush=True)


def write(path, rows, measured):
    result = {
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(),
        "device": torch.cuda.get_device_name(0),
        "ceilings": measured,
        "rotated_bytes": ROTATED_BYTES,
        "rows": rows,
    }
    with open(path, "w", encoding="utf-8") as file:
        json.dump(result, file, indent=2)
        file.write("\n")
