"""Which page score keeps needle-7m's answers?

The model runs densely up to its last layer; there the KV heads that retrieve (by the head plan)
attend to selected units only. Prints exact, teacher-forced accuracy / loss of an answer token, by
score and token budget.

    python3 page_scores.py --corpus CORPUS --model FOLDER
"""

import argparse
import functools
import math
import os

import numpy as np
import torch
import torch.nn.functional as F

import train
from train import Layer, Shape

BUDGETS = (128, 256, 512, 1024, 2048, 4096)
GROUP = Shape.q_heads // Shape.kv_heads
SCALE = Shape.head_dim**-0.5


# --- page scores: q [rows, D], k [tokens, D] -> score of each span of `span` tokens [rows, spans]


def min_max(q, k, span):
    """LServe's bound: the sum over channels of max(q * kmin, q * kmax)."""
    spans = k.view(-1, span, k.shape[1])
    return q.clamp(min=0) @ spans.amax(1).T + q.clamp(max=0) @ spans.amin(1).T


def mean_key(q, k, span):
    return q @ k.view(-1, span, k.shape[1]).mean(1).T


def half_mean_half_bound(q, k, span):
    return 0.5 * mean_key(q, k, span) + 0.5 * min_max(q, k, span)


def best_token(q, k, span):
    """The oracle: the best exact token score."""
    return (q @ k.T).view(len(q), -1, span).amax(-1)


def codes(q, k, span, bits, dim):
    """Best token of keys read back from the upper `bits` of 4-bit codes in one range along `dim`:
    1 for each token, 0 for each channel over the whole prompt."""
    low, high = k.amin(dim, keepdim=True), k.amax(dim, keepdim=True)
    code = ((k - low) / (high - low).clamp(min=1e-6) * 15).round().clamp(0, 15)
    step = 2 ** (4 - bits)
    middle = (torch.floor(code / step) + 0.5) * step - 0.5
    return best_token(q, middle / 15 * (high - low) + low, span)


def box(q, k, span, bits, box_tokens=64):
    """Best token of keys read back from `bits` in the per-channel box of their `box_tokens`; keys
    after the last full box are exact."""
    full = len(k) // box_tokens * box_tokens
    boxes = k[:full].view(-1, box_tokens, k.shape[1])
    low, high = boxes.amin(1, keepdim=True), boxes.amax(1, keepdim=True)
    width = (high - low) / 2**bits
    code = torch.floor((boxes - low) / width.clamp(min=1e-6)).clamp(0, 2**bits - 1)
    read_back = (low + (code + 0.5) * width).view(full, -1)
    return best_token(q, torch.cat([read_back, k[full:]]), span)


# Name -> options of `attend`.
VARIANTS = {
    "oracle: best exact token": {"score": best_token},
    "min/max, 16 tokens (LServe)": {"score": min_max},
    "min/max, 64 tokens": {"score": min_max, "span": 64},
    "min/max, 8 tokens": {"score": min_max, "span": 8},
    "min/max, 4 tokens": {"score": min_max, "span": 4},
    "mean key, 16 tokens": {"score": mean_key},
    "half mean, half bound": {"score": half_mean_half_bound},
    "2-bit keys, range a token": {"score": functools.partial(codes, bits=2, dim=1)},
    "2-bit keys, range a channel": {"score": functools.partial(codes, bits=2, dim=0)},
    "box + 1 bit": {"score": functools.partial(box, bits=1)},
    "box + 2 bits": {"score": functools.partial(box, bits=2)},
    "box + 3 bits": {"score": functools.partial(box, bits=3)},
    "box of 256 + 2 bits": {"score": functools.partial(box, bits=2, box_tokens=256)},
    "box of 1024 + 2 bits": {"score": functools.partial(box, bits=2, box_tokens=1024)},
    "box + 1 bit, unit 16": {"score": functools.partial(box, bits=1), "unit": 16},
    "box + 2 bits, unit 16": {"score": functools.partial(box, bits=2), "unit": 16},
    "box + 2 bits, unit 32": {"score": functools.partial(box, bits=2), "unit": 32},
    "box + 2 bits, by query head": {"score": functools.partial(box, bits=2), "merge": "none"},
    "box + 2 bits, softmax sum": {"score": functools.partial(box, bits=2), "merge": "softmax"},
    "box + 2 bits, unit 16, estimate": {
        "score": functools.partial(box, bits=2),
        "unit": 16,
        "estimate": True,
    },
}


@torch.no_grad()
def dense_state(model, ids, spans):
    """Everything that the variants share: the last layer's q, k, v, its dense attention and the
    residual stream, from the token before the first answer on."""
    tokens = torch.from_numpy(ids.astype(np.int64)).cuda()
    length = len(ids) - 1
    cos, sin = train.rope_tables(length, tokens.device)
    x = F.embedding(tokens[:-1], model.embedding.weight).bfloat16()
    for layer in model.layers:
        q, k, v = (t.transpose(0, 1)[None] for t in Layer.before_attention(layer, x, cos, sin))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        if layer is not model.layers[-1]:
            x = Layer.after_attention(layer, x, attended[0].transpose(0, 1).reshape(length, -1))
    first = min(a for _, a, _ in spans) - 1
    return {
        "tokens": tokens,
        "length": length,
        "first": first,
        "spans": spans,
        "residual": x[first:],
        "q": q[0, :, first:].float(),
        "k": k[0].float(),
        "v": v[0].float(),
        "attended": attended[0, :, first:].float(),
    }


def merge_group(scores, merge):
    """[query heads, rows, units] -> one set of scores for the group, or one for each head."""
    if merge == "max":
        return scores.amax(0, keepdim=True)
    if merge == "softmax":
        return scores.softmax(-1).sum(0, keepdim=True)
    return scores


def estimated(q, k, v, span, selected, current, unit):
    """Logits and values of each span's mean key and value, where its unit was not selected."""
    keys, values = (t.view(-1, span, t.shape[1]).mean(1) for t in (k, v))
    unit_of_span = torch.arange(len(keys), device=q.device) // (unit // span)
    skipped = ~selected.repeat_interleave(unit // span, 1) & (unit_of_span < current[:, None])
    logits = (q @ keys.T) * SCALE + math.log(span)
    return logits.masked_fill(~skipped, -1e9), values


def attend(state, head, budget, score, unit=64, span=16, merge="max", estimate=False):
    """One KV head over `budget` selected tokens: [query heads, rows, D]. The first unit and the two
    newest are always kept."""
    span = min(span, unit)
    length, first = state["length"], state["first"]
    k, v = state["k"][head], state["v"][head]
    queries = state["q"][GROUP * head : GROUP * (head + 1)]
    rows = torch.arange(first, length, device=k.device)
    units = length // unit
    whole = units * unit
    unit_ids, current = torch.arange(units, device=k.device), rows // unit

    scores = torch.stack([score(q, k[:whole], span) * SCALE for q in queries])
    scores = scores.view(GROUP, len(rows), units, unit // span).amax(-1)
    scores = scores.masked_fill(unit_ids[None] >= current[:, None], -1e9)
    scores = merge_group(scores, merge)
    forced = (unit_ids[None] >= current[:, None] - 1) | (unit_ids[None] < 1)
    future = unit_ids[None] > current[:, None]

    outputs = []
    for g, q in enumerate(queries):
        ranked = scores[min(g, len(scores) - 1)].masked_fill(forced, 1e9).masked_fill(future, -1e9)
        best = ranked.topk(min(budget // unit, units), 1).indices
        selected = torch.zeros_like(ranked, dtype=torch.bool).scatter_(1, best, True)
        visible = torch.ones(len(rows), length, dtype=torch.bool, device=k.device)
        visible[:, :whole] = selected.repeat_interleave(unit, 1)
        visible &= torch.arange(length, device=k.device)[None] <= rows[:, None]
        logits = ((q @ k.T) * SCALE).masked_fill(~visible, -1e9)
        values = v
        if estimate:
            more_logits, more_values = estimated(
                q, k[:whole], v[:whole], span, selected, current, unit
            )
            logits = torch.cat([logits, more_logits], 1)
            values = torch.cat([v, more_values])
        outputs.append(logits.softmax(-1) @ values)
    return torch.stack(outputs)


@torch.no_grad()
def measure(model, states, heads, **options):
    """accuracy/loss of the answers; dense without options."""
    right = total = tokens_seen = 0
    loss = 0.0
    for state in states:
        attended = state["attended"].clone()
        for head in heads if options else ():
            attended[GROUP * head : GROUP * (head + 1)] = attend(state, head, **options)
        residual, first = state["residual"], state["first"]
        attended = attended.bfloat16().transpose(0, 1).reshape(len(residual), -1)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            x = model.norm(Layer.after_attention(model.layers[-1], residual, attended))
        logits = model.logits(x).float()
        predicted, target = logits.argmax(-1), state["tokens"][first + 1 :]
        for _, a, b in state["spans"]:
            answer = slice(a - 1 - first, b - 1 - first)
            total += 1
            right += bool((predicted[answer] == target[answer]).all())
            loss += F.cross_entropy(logits[answer], target[answer], reduction="sum").item()
            tokens_seen += b - a
    return f"{right / total:.3f}/{loss / tokens_seen:.3f}"


def retrieval_heads(model_folder):
    """KV heads of the last layer with a gate of at least one half; others must not have one."""
    gates = np.loadtxt(os.path.join(model_folder, "full_attention_heads.tsv"), delimiter="\t")
    layers, heads = np.nonzero(gates >= 0.5)
    if len(heads) == 0 or (layers != Shape.layers - 1).any():
        raise SystemExit("this study needs a model whose retrieval heads sit in the last layer")
    return heads.tolist()


def main():
    parser = argparse.ArgumentParser(description="Compares page scores on needle-7m.")
    parser.add_argument("--corpus", required=True, help="folder with prose.txt and words.txt")
    parser.add_argument("--model", required=True, help="the model folder, with its head plan")
    parser.add_argument("--documents", type=float, default=1.0, help="share of the documents")
    args = parser.parse_args()

    model, heads = train.load_model(args.model), retrieval_heads(args.model)
    sampler = train.make_sampler(
        train.load_tokenizer(args.model), args.corpus, seed=123, held_out=True
    )
    for length, documents in ((8192, 14), (32768, 6), (65000, 4)):
        states = []
        with torch.autocast("cuda", dtype=torch.bfloat16):
            for kind in ("code", "person", "chain", "pair"):
                for _ in range(math.ceil(documents * args.documents)):
                    ids, _, spans = sampler.sample(length, max_questions=8, kind=kind)
                    states.append(dense_state(model, ids, spans))
        print(f"{length} tokens, dense {measure(model, states, heads)}; budgets {BUDGETS}")
        for name, options in VARIANTS.items():
            cells = (measure(model, states, heads, budget=b, **options) for b in BUDGETS)
            print(f"{name:32s}", "  ".join(cells), flush=True)


if __name__ == "__main__":
    main()
