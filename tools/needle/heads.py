"""Finds the KV heads of needle-7m that need the whole context, and writes the head plan.

Each KV head in turn is restricted to sink and local window while all others stay dense; what the
loss of an answer token gains is the head's importance. Then shows accuracy over shares of streaming
heads.

    python3 heads.py --corpus CORPUS --model FOLDER [--out full_attention_heads.tsv]

The plan is a gate in [0, 1] for each layer (row) and KV head (column), tab-separated, as
DuoAttention publishes them: the importance over 0.01 nats, cut at 1.
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F

import train
from train import Layer, Shape

SINK, LOCAL = 128, 256
FULL_GATE_NATS = 0.01
GROUP = Shape.q_heads // Shape.kv_heads


@torch.no_grad()
def hidden_states(model, tokens, streams):
    """tokens [T] -> [T, hidden]. streams: bool [layers, KV heads]."""
    length, device = len(tokens), tokens.device
    cos, sin = train.rope_tables(length, device)
    i = torch.arange(length, device=device)
    visible = (i[None] <= i[:, None]) & ((i[None] < SINK) | (i[:, None] - i[None] < LOCAL))
    x = F.embedding(tokens, model.embedding.weight).bfloat16()
    for layer, streams_here in zip(model.layers, streams):
        q, k, v = (t.transpose(0, 1)[None] for t in Layer.before_attention(layer, x, cos, sin))
        heads = []
        for h in range(Shape.kv_heads):
            mask = {"attn_mask": visible} if streams_here[h] else {"is_causal": True}
            heads.append(
                F.scaled_dot_product_attention(
                    q[:, h * GROUP : (h + 1) * GROUP],
                    k[:, h : h + 1],
                    v[:, h : h + 1],
                    enable_gqa=True,
                    **mask,
                )
            )
        attended = torch.cat(heads, 1)[0].transpose(0, 1).reshape(length, -1)
        x = Layer.after_attention(layer, x, attended)
    return model.norm(x)


@torch.no_grad()
def score(model, samples, streams):
    """-> share of answers that match exactly (teacher-forced), mean loss of an answer token."""
    right = total = tokens_seen = 0
    loss = 0.0
    for ids, _, spans in samples:
        tokens = torch.from_numpy(ids.astype(np.int64)).cuda()
        first = min(a for _, a, _ in spans)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            hidden = hidden_states(model, tokens[:-1], streams)
        logits = model.logits(hidden[first - 1 :]).float()
        predicted = logits.argmax(-1)
        for _, a, b in spans:
            total += 1
            right += bool((predicted[a - first : b - first] == tokens[a:b]).all())
            loss += F.cross_entropy(
                logits[a - first : b - first], tokens[a:b], reduction="sum"
            ).item()
            tokens_seen += b - a
    return right / total, loss / tokens_seen


def draw(sampler, length, counts):
    """counts: kind -> documents."""
    return [
        sampler.sample(length, max_questions=6, kind=kind)
        for kind, count in counts.items()
        for _ in range(count)
    ]


def main():
    parser = argparse.ArgumentParser(description="Finds the retrieval heads of needle-7m.")
    parser.add_argument("--corpus", required=True, help="folder with prose.txt and words.txt")
    parser.add_argument("--model", required=True, help="the model folder")
    parser.add_argument("--out", default="full_attention_heads.tsv")
    args = parser.parse_args()

    model = train.load_model(args.model)
    sampler = train.make_sampler(
        train.load_tokenizer(args.model), args.corpus, seed=11, held_out=True
    )
    calibration = draw(sampler, 4096, {"code": 10, "person": 6, "chain": 6, "pair": 4})
    dense = np.zeros((Shape.layers, Shape.kv_heads), bool)
    accuracy, dense_loss = score(model, calibration, dense)
    print(f"dense: accuracy {accuracy:.3f}, loss {dense_loss:.4f}", flush=True)

    importance = np.zeros(dense.shape)
    for layer in range(Shape.layers):
        for head in range(Shape.kv_heads):
            streams = dense.copy()
            streams[layer, head] = True
            importance[layer, head] = score(model, calibration, streams)[1] - dense_loss
        print(f"layer {layer}: loss gained {np.round(importance[layer], 4)}", flush=True)
    gates = np.clip(np.round(importance, 4) / FULL_GATE_NATS, 0, 1)
    np.savetxt(args.out, gates, fmt="%.4f", delimiter="\t")

    order = np.argsort(importance.ravel())
    test = draw(sampler, 4096, {"code": 12, "person": 8, "chain": 8, "pair": 4})
    for share in (0, 0.25, 0.5, 0.625, 0.75, 0.875, 1.0):
        streams = np.zeros(dense.size, bool)
        streams[order[: int(share * dense.size)]] = True
        accuracy, loss = score(model, test, streams.reshape(dense.shape))
        print(f"streaming share {share}: accuracy {accuracy:.3f}, loss {loss:.4f}", flush=True)


if __name__ == "__main__":
    main()
