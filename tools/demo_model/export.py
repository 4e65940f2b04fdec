"""Writes the checkpoint with Qwen3-MoE's published tensor names, one tensor per expert, in BF16.

Run by itself it exports the averaged weights of a training state, for a look before training ends:

    python tools/demo_model/export.py --state STATE --out FOLDER_WITH_TOKENIZER
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def tensors(network) -> dict[str, torch.Tensor]:
    c = network.c
    named = {"model.embed_tokens.weight": network.embed_tokens, "model.norm.weight": network.norm}
    rows = [c.num_attention_heads * c.head_dim] + 2 * [c.num_key_value_heads * c.head_dim]
    for n, layer in enumerate(network.layers):
        prefix = f"model.layers.{n}"
        for name, part in zip("qkv", layer.qkv_proj.split(rows)):
            named[f"{prefix}.self_attn.{name}_proj.weight"] = part
        named[f"{prefix}.self_attn.o_proj.weight"] = layer.o_proj
        named[f"{prefix}.self_attn.q_norm.weight"] = layer.q_norm
        named[f"{prefix}.self_attn.k_norm.weight"] = layer.k_norm
        named[f"{prefix}.input_layernorm.weight"] = layer.input_layernorm
        named[f"{prefix}.post_attention_layernorm.weight"] = layer.post_attention_layernorm
        named[f"{prefix}.mlp.gate.weight"] = layer.gate
        for e in range(c.num_experts):
            gate, up = layer.gate_up_proj[e].chunk(2)
            named[f"{prefix}.mlp.experts.{e}.gate_proj.weight"] = gate
            named[f"{prefix}.mlp.experts.{e}.up_proj.weight"] = up
            named[f"{prefix}.mlp.experts.{e}.down_proj.weight"] = layer.down_proj[e]
    return {name: tensor.detach().bfloat16().contiguous().clone() for name, tensor in named.items()}


@torch.no_grad()
def read_checkpoint(network, folder: Path) -> None:
    """Fills `network` with a checkpoint that write_checkpoint wrote: the inverse of tensors()."""
    named, c = load_file(folder / "model.safetensors"), network.c
    network.embed_tokens.copy_(named["model.embed_tokens.weight"])
    network.norm.copy_(named["model.norm.weight"])
    for n, layer in enumerate(network.layers):
        get = lambda name: named[f"model.layers.{n}.{name}.weight"].float()
        layer.qkv_proj.copy_(torch.cat([get(f"self_attn.{name}_proj") for name in "qkv"]))
        layer.o_proj.copy_(get("self_attn.o_proj"))
        layer.gate.copy_(get("mlp.gate"))
        for name in ("q_norm", "k_norm"):
            getattr(layer, name).copy_(get(f"self_attn.{name}"))
        for name in ("input_layernorm", "post_attention_layernorm"):
            getattr(layer, name).copy_(get(name))
        for e in range(c.num_experts):
            expert = f"mlp.experts.{e}"
            layer.gate_up_proj[e].copy_(torch.cat([get(f"{expert}.gate_proj"), get(f"{expert}.up_proj")]))
            layer.down_proj[e].copy_(get(f"{expert}.down_proj"))


def write_checkpoint(network, tokenizer, folder: Path) -> None:
    c = network.c
    end, pad = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")
    config = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": pad,
        "decoder_sparse_step": 1,
        "eos_token_id": end,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "hidden_size": c.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": 4 * c.moe_intermediate_size,  # unused: every layer is sparse
        "max_position_embeddings": c.max_position_embeddings,
        "max_window_layers": c.num_hidden_layers,
        "mlp_only_layers": [],
        "model_type": "qwen3_moe",
        "moe_intermediate_size": c.moe_intermediate_size,
        "norm_topk_prob": True,
        "num_attention_heads": c.num_attention_heads,
        "num_experts": c.num_experts,
        "num_experts_per_tok": c.num_experts_per_tok,
        "num_hidden_layers": c.num_hidden_layers,
        "num_key_value_heads": c.num_key_value_heads,
        "output_router_logits": False,
        "rms_norm_eps": c.rms_norm_eps,
        "rope_scaling": None,
        "rope_theta": c.rope_theta,
        "router_aux_loss_coef": 0.001,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": c.vocab_size,
    }
    generation = {"bos_token_id": pad, "do_sample": True, "eos_token_id": [end, pad], "pad_token_id": pad,
                  "temperature": 0.6, "top_k": 20, "top_p": 0.95}
    for name, content in (("config.json", config), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    save_file(tensors(network), folder / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    from tokenizers import Tokenizer

    import model as demo_model

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    weights = torch.load(args.state)["average"]
    network = demo_model.DemoModel(
        demo_model.ModelConfig(vocab_size=weights["embed_tokens"].shape[0]))
    network.load_state_dict(weights)
    write_checkpoint(network, Tokenizer.from_file(str(args.out / "tokenizer.json")), args.out)


if __name__ == "__main__":
    main()
