"""Writes tests/data/rope/rope.json: inverse frequencies and attention factors of configurations,
computed by Hugging Face transformers (5.x) with PyTorch.

    python3 tests/oracles/make_rope_data.py [OUT]

Each case holds the whole config.json, so that reading it is tested as well.
"""

import json
import pathlib
import sys

import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.mistral.modeling_mistral import MistralRotaryEmbedding
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

FAMILIES = {
    "LlamaForCausalLM": (transformers.LlamaConfig, LlamaRotaryEmbedding),
    "MistralForCausalLM": (transformers.MistralConfig, MistralRotaryEmbedding),
    "Qwen2ForCausalLM": (transformers.Qwen2Config, Qwen2RotaryEmbedding),
    "Qwen3ForCausalLM": (transformers.Qwen3Config, Qwen3RotaryEmbedding),
}


def base(architecture, head_dim, positions=4096, **fields):
    return {
        "architectures": [architecture],
        "vocab_size": 1000,
        "hidden_size": 4 * head_dim,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": head_dim,
        "intermediate_size": 512,
        "max_position_embeddings": positions,
        "rms_norm_eps": 1e-6,
        **fields,
    }


def cases():
    llama, mistral, qwen2, qwen3 = FAMILIES
    llama3 = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    yarn = {"factor": 4.0, "original_max_position_embeddings": 32768}
    for head_dim in (64, 80, 96, 128):
        yield f"plain {head_dim}", base(llama, head_dim)
    yield "plain, rope_theta", base(mistral, 128, 32768, rope_theta=1e6)
    yield "plain, rope_parameters", base(
        qwen3, 128, 40960, rope_parameters={"rope_type": "default", "rope_theta": 5e6}
    )
    yield "linear, type", base(
        llama, 128, rope_scaling={"type": "linear", "factor": 2.0}
    )
    yield "linear 80, rope_parameters", base(
        llama,
        80,
        rope_parameters={"rope_type": "linear", "factor": 3.5, "rope_theta": 25000.0},
    )
    yield "llama 3.1, rope_scaling", base(
        llama,
        128,
        131072,
        rope_theta=500000.0,
        rope_scaling={"rope_type": "llama3", **llama3},
    )
    yield "llama 3.2, rope_parameters", base(
        llama,
        64,
        131072,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            **llama3,
            "factor": 32.0,
        },
    )
    yield "llama3 of a short original", base(
        llama,
        128,
        131072,
        rope_theta=500000.0,
        rope_scaling={
            "rope_type": "llama3",
            **llama3,
            "original_max_position_embeddings": 64,
        },
    )
    yield "yarn, type", base(
        qwen2, 128, 32768, rope_theta=1e6, rope_scaling={"type": "yarn", **yarn}
    )
    yield "yarn, rope_parameters", base(
        qwen3,
        128,
        131072,
        rope_parameters={"rope_type": "yarn", "rope_theta": 1e6, **yarn},
    )
    yield "yarn 96, attention_factor", base(
        llama,
        96,
        8192,
        rope_theta=10000.0,
        rope_scaling={
            "rope_type": "yarn",
            "factor": 16.0,
            "original_max_position_embeddings": 4096,
            "attention_factor": 0.75,
        },
    )
    yield "yarn 64, mscale and betas", base(
        llama,
        64,
        16384,
        rope_theta=10000.0,
        rope_scaling={
            "rope_type": "yarn",
            "factor": 40.0,
            "original_max_position_embeddings": 4096,
            "mscale": 0.707,
            "mscale_all_dim": 1.2,
            "beta_fast": 24,
            "beta_slow": 2,
        },
    )
    yield "yarn 80, not truncated", base(
        llama,
        80,
        16384,
        rope_theta=150000.0,
        rope_scaling={
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 4096,
            "truncate": False,
        },
    )
    yield "yarn, original length of the context", base(
        llama, 128, 4096, rope_scaling={"rope_type": "yarn", "factor": 2.0}
    )


def main():
    default = pathlib.Path(__file__).parent.parent / "data" / "rope" / "rope.json"
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else default
    rows = []
    for name, fields in cases():
        make_config, make_rotary = FAMILIES[fields["architectures"][0]]
        rotary = make_rotary(make_config(**json.loads(json.dumps(fields))))
        # A shortest decimal of the float32's exact double value reads back as that float32.
        frequencies = [float(x) for x in rotary.inv_freq.float()]
        rows.append(
            {
                "name": name,
                "config": fields,
                "inverse_frequencies": frequencies,
                "attention_factor": float(
                    torch.tensor(rotary.attention_scaling, dtype=torch.float32)
                ),
            }
        )
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(
        f'{{"transformers": "{transformers.__version__}", "cases": [\n{lines}\n]}}\n'
    )
    print(f"{len(rows)} cases in {out}")


if __name__ == "__main__":
    main()
