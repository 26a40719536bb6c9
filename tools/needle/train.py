"""Trains needle-7m: a small Llama-architecture model that answers questions about facts hidden in
documents of up to 65,536 tokens. Writes an ordinary Hugging Face folder (config, tokenizer,
safetensors). Needs one GPU with bfloat16.

    python3 train.py --corpus CORPUS --out FOLDER --minutes 20

CORPUS holds prose.txt (English prose, one paragraph a line: half of the filler) and words.txt
(one word a line, shuffled: keys; the first 2000 are held out for evaluation).
"""

import argparse
import json
import math
import os
import random
import time

import numpy as np
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn

import data

SPECIAL_TOKENS = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
    "+ message['content'] | trim + '<|eot_id|>' }}{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
HELD_OUT_WORDS = 2000
# (share of the training time, longest document from there on)
STAGES = (
    (0.0, 512),
    (0.05, 1024),
    (0.10, 2048),
    (0.17, 4096),
    (0.27, 8192),
    (0.40, 16384),
    (0.55, 32768),
    (0.78, 65536),
)
# Module of a layer here -> its name in a Hugging Face checkpoint.
LAYER_WEIGHTS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
}


class Shape:
    vocab, hidden, layers, q_heads, kv_heads, head_dim, ffn = 4096, 256, 6, 8, 4, 64, 768
    theta, positions, eps = 1e6, 65536, 1e-5


# --- model


class RMSNorm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        f = x.float()
        scaled = (f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + Shape.eps)).to(x.dtype)
        return scaled * self.weight.to(x.dtype)


def rope_tables(positions, device):
    """cos and sin, bfloat16 [positions, 1, head_dim]."""
    exponents = torch.arange(0, Shape.head_dim, 2, device=device).float() / Shape.head_dim
    angles = torch.arange(positions, device=device).float()[:, None] / Shape.theta**exponents
    angles = torch.cat((angles, angles), -1)[:, None]
    return angles.cos().bfloat16(), angles.sin().bfloat16()


def rope(x, cos, sin):
    """x: [rows, heads, head_dim]."""
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


class Layer(nn.Module):
    """One decoder layer in two halves, so that the caller chooses the attention between them."""

    def __init__(self):
        super().__init__()
        q_size, kv_size = Shape.q_heads * Shape.head_dim, Shape.kv_heads * Shape.head_dim
        self.attention_norm, self.mlp_norm = RMSNorm(Shape.hidden), RMSNorm(Shape.hidden)
        self.q = nn.Linear(Shape.hidden, q_size, bias=False)
        self.k = nn.Linear(Shape.hidden, kv_size, bias=False)
        self.v = nn.Linear(Shape.hidden, kv_size, bias=False)
        self.o = nn.Linear(q_size, Shape.hidden, bias=False)
        self.gate = nn.Linear(Shape.hidden, Shape.ffn, bias=False)
        self.up = nn.Linear(Shape.hidden, Shape.ffn, bias=False)
        self.down = nn.Linear(Shape.ffn, Shape.hidden, bias=False)

    def before_attention(self, x, cos, sin):
        """x: [rows, hidden] -> q, k (turned) and v, [rows, heads, head_dim]."""
        h = self.attention_norm(x)
        q = rope(self.q(h).view(-1, Shape.q_heads, Shape.head_dim), cos, sin)
        k = rope(self.k(h).view(-1, Shape.kv_heads, Shape.head_dim), cos, sin)
        return q, k, self.v(h).view(-1, Shape.kv_heads, Shape.head_dim)

    def after_attention(self, x, attended):
        """attended: [rows, q_heads * head_dim]."""
        x = x + self.o(attended)
        h = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(Shape.vocab, Shape.hidden)
        self.layers = nn.ModuleList(Layer() for _ in range(Shape.layers))
        self.norm = RMSNorm(Shape.hidden)
        depth = math.sqrt(2 * Shape.layers)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                into_residual = name.endswith(("o.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / (depth if into_residual else 1))
        nn.init.normal_(self.embedding.weight, std=Shape.hidden**-0.5)

    def hidden(self, tokens, before=Layer.before_attention, after=Layer.after_attention):
        """tokens [B, T] -> final hidden states [B * T, hidden]. `before` and `after` may be the
        compiled halves of a layer."""
        batch, length = tokens.shape
        cos, sin = (t.repeat(batch, 1, 1) for t in rope_tables(length, tokens.device))
        x = F.embedding(tokens.reshape(-1), self.embedding.weight).bfloat16()
        for layer in self.layers:
            q, k, v = (
                t.view(batch, length, -1, Shape.head_dim).transpose(1, 2)
                for t in before(layer, x, cos, sin)
            )
            with nn.attention.sdpa_kernel([nn.attention.SDPBackend.FLASH_ATTENTION]):
                attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            x = after(layer, x, attended.transpose(1, 2).reshape(batch * length, -1))
        return self.norm(x)

    def logits(self, hidden):
        return hidden.bfloat16() @ self.embedding.weight.t().bfloat16()


def hugging_face_weights(model):
    """Name in a Hugging Face checkpoint -> parameter."""
    weights = {
        "model.embed_tokens.weight": model.embedding.weight,
        "model.norm.weight": model.norm.weight,
    }
    for i, layer in enumerate(model.layers):
        for name, published in LAYER_WEIGHTS.items():
            weights[f"model.layers.{i}.{published}.weight"] = getattr(layer, name).weight
    return weights


@torch.no_grad()
def load_model(folder):
    """The model of a folder that `export` wrote, on the GPU."""
    model = Model()
    saved = load_file(os.path.join(folder, "model.safetensors"))
    for name, parameter in hugging_face_weights(model).items():
        parameter.copy_(saved[name])
    return model.cuda()


def load_tokenizer(folder):
    return Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))


def export(model, folder):
    """Writes weights, config.json, tokenizer_config.json and generation_config.json."""
    weights = {
        name: parameter.detach().bfloat16().contiguous().cpu()
        for name, parameter in hugging_face_weights(model).items()
    }
    save_file(weights, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    tokenizer = load_tokenizer(folder)
    bos = tokenizer.token_to_id("<|begin_of_text|>")
    eos = [tokenizer.token_to_id(name) for name in ("<|end_of_text|>", "<|eot_id|>")]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": Shape.vocab,
        "hidden_size": Shape.hidden,
        "num_hidden_layers": Shape.layers,
        "num_attention_heads": Shape.q_heads,
        "num_key_value_heads": Shape.kv_heads,
        "head_dim": Shape.head_dim,
        "intermediate_size": Shape.ffn,
        "rope_theta": Shape.theta,
        "max_position_embeddings": Shape.positions,
        "rms_norm_eps": Shape.eps,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": bos,
        "eos_token_id": eos,
    }
    tokenizer_config = {
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
        "model_max_length": Shape.positions,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
    }
    generation = {"bos_token_id": bos, "eos_token_id": eos, "do_sample": False}
    for name, content in (
        ("config.json", config),
        ("tokenizer_config.json", tokenizer_config),
        ("generation_config.json", generation),
    ):
        with open(os.path.join(folder, name), "w") as file:
            json.dump(content, file, indent=2)


# --- text


def read_lines(corpus, name):
    with open(os.path.join(corpus, name)) as file:
        return file.read().split("\n")


def train_tokenizer(corpus):
    """A byte-level BPE on half of the prose, synthetic filler, facts and digits."""
    r = random.Random(3)
    facts = data.Facts(r, read_lines(corpus, "words.txt"))
    texts = read_lines(corpus, "prose.txt")[::2]
    texts += [data.synthetic_paragraph(r) for _ in range(4000)]
    for _ in range(12000):
        facts.used.clear()
        _, sentences, question, answer = facts.draw()
        texts += sentences + [question, answer]
    texts += [str(r.randrange(10**9)) for _ in range(20000)]

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=Shape.vocab,
        special_tokens=SPECIAL_TOKENS,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A",
        pair="<|begin_of_text|> $A <|begin_of_text|> $B",
        special_tokens=[("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))],
    )
    return tokenizer


def make_sampler(tokenizer, corpus, seed, held_out):
    """A Sampler over prose and synthetic filler; keys of held-out words or of the others."""
    r = random.Random(7)
    paragraphs = [data.synthetic_paragraph(r) for _ in range(40000)]
    corpora = [
        data.Corpus(tokenizer, read_lines(corpus, "prose.txt")),
        data.Corpus(tokenizer, paragraphs),
    ]
    words = read_lines(corpus, "words.txt")
    words = words[:HELD_OUT_WORDS] if held_out else words[HELD_OUT_WORDS:]
    return data.Sampler(tokenizer, corpora, words, seed)


def produce_batches(index, args, longest, queue):
    """A data process: batches of equally long samples, at most `longest.value` tokens each."""
    torch.set_num_threads(1)
    sampler = make_sampler(load_tokenizer(args.out), args.corpus, 1000 + index, held_out=False)
    while True:
        top = longest.value
        length = top
        if sampler.r.random() >= 0.6:
            length = max(512, top >> sampler.r.randint(1, 6))
        batch = args.tokens // length
        tokens = np.empty((batch, length + 1), np.int16)
        mask = np.empty((batch, length + 1), np.uint8)
        for row in range(batch):
            tokens[row], mask[row], _ = sampler.sample(length, max_questions=12)
        queue.put((torch.from_numpy(tokens), torch.from_numpy(mask)))


# --- training and evaluation


def loss_function(hidden, embedding, target, mask):
    """Answer tokens weigh 1, all others together 0.3. -> loss, its two parts, answer accuracy."""
    logits = (hidden @ embedding.t().to(hidden.dtype)).float()
    each = F.cross_entropy(logits, target, reduction="none")
    m = mask.float()
    answer = (each * m).sum() / m.sum().clamp(min=1)
    text = (each * (1 - m)).sum() / (1 - m).sum()
    right = ((logits.argmax(-1) == target).float() * m).sum() / m.sum().clamp(min=1)
    return answer + 0.3 * text, answer.detach(), text.detach(), right.detach()


@torch.no_grad()
def evaluate(model, args, lengths, documents):
    """Exact, teacher-forced matches by kind and length, over keys of held-out words."""
    sampler = make_sampler(load_tokenizer(args.out), args.corpus, 5, held_out=True)
    results = {}
    for length in lengths:
        for kind in ("code", "person", "pair", "multi", "chain"):
            right = total = 0
            count = max(4, documents * 4096 // length) if length > 4096 else documents
            for _ in range(count):
                ids, _, spans = sampler.sample(length, max_questions=8, kind=kind)
                tokens = torch.from_numpy(ids.astype(np.int64)).cuda()
                predicted = model.logits(model.hidden(tokens[None, :-1])[-1200:])
                predicted = predicted.argmax(-1).cpu().numpy()
                shift = len(ids) - len(predicted)  # predicted[i] is for ids[shift + i]
                for _, a, b in spans:
                    if a >= shift:
                        total += 1
                        right += bool((predicted[a - shift : b - shift] == ids[a:b]).all())
            results[f"{kind}@{length}"] = (right, total)
            print(f"{kind} at {length}: {right} of {total}", flush=True)
    return results


def make_optimizer(model, lr):
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        decays = parameter.dim() == 2 and "embedding" not in name
        (decayed if decays else plain).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": 0.1},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)


def train(model, args, longest, queue):
    """Runs for args.minutes; the learning rate falls over the second half of the time."""
    compiled = (lambda f: f) if args.smoke else torch.compile
    before = compiled(lambda layer, x, cos, sin: layer.before_attention(x, cos, sin))
    after = compiled(lambda layer, x, attended: layer.after_attention(x, attended))
    loss_of = compiled(loss_function)
    optimizer = make_optimizer(model, args.lr)
    start = saved = time.time()
    step = seen = 0
    while True:
        done = (time.time() - start) / (args.minutes * 60)
        if done >= 1 or (args.smoke and step >= 12):
            break
        stage = max(length for begin, length in STAGES if done >= begin)
        longest.value = (512, 2048, 32768)[step % 3] if args.smoke else stage
        lr = args.lr * min(1, (step + 1) / 200)
        lr *= 1 if done < 0.5 else max(0.02, (1 - done) / 0.5)
        for group in optimizer.param_groups:
            group["lr"] = lr
        tokens, mask = (t.cuda(non_blocking=True) for t in queue.get())
        tokens = tokens.long()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            hidden = model.hidden(tokens[:, :-1].contiguous(), before, after)
            loss, answer, text, right = loss_of(
                hidden, model.embedding.weight, tokens[:, 1:].reshape(-1), mask[:, 1:].reshape(-1)
            )
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        seen += tokens.numel()
        if step % 50 == 0 or args.smoke:
            seconds = time.time() - start
            print(
                f"step {step}, {seconds:.0f} s, length {tokens.shape[1] - 1}: "
                f"answer loss {answer.item():.4f}, answer tokens right {right.item():.4f}, "
                f"text loss {text.item():.3f}, lr {lr:.1e}, {seen / seconds:.0f} tokens/s",
                flush=True,
            )
        if time.time() - saved > 180:
            export(model, args.out)
            saved = time.time()
    print(f"trained: {step} steps, {seen} tokens", flush=True)


def main():
    parser = argparse.ArgumentParser(description="Trains needle-7m.")
    parser.add_argument("--corpus", required=True, help="folder with prose.txt and words.txt")
    parser.add_argument("--out", required=True, help="the model folder to write")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--tokens", type=int, default=262144, help="tokens a step")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--workers", type=int, default=14, help="data processes")
    parser.add_argument("--smoke", action="store_true", help="twelve steps, to see that it runs")
    args = parser.parse_args()

    os.makedirs(args.out, exist_ok=True)
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = True
    tokenizer_file = os.path.join(args.out, "tokenizer.json")
    if not os.path.exists(tokenizer_file):
        train_tokenizer(args.corpus).save(tokenizer_file)

    mp.set_start_method("spawn", force=True)
    longest, queue = mp.Value("i", 512), mp.Queue(maxsize=24)
    workers = [
        mp.Process(target=produce_batches, args=(i, args, longest, queue), daemon=True)
        for i in range(args.workers)
    ]
    for worker in workers:
        worker.start()
    model = Model().cuda()
    train(model, args, longest, queue)
    for worker in workers:
        worker.terminate()
    export(model, args.out)

    lengths = [1024, 32768] if args.smoke else [1024, 4096, 8192, 16384, 32768, 65536]
    with torch.autocast("cuda", dtype=torch.bfloat16):
        results = evaluate(model, args, lengths, documents=4 if args.smoke else 24)
    with open(os.path.join(args.out, "eval.json"), "w") as file:
        json.dump(results, file)


if __name__ == "__main__":
    main()
