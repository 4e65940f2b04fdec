"""Random Qwen3 checkpoints: weights by seed, published tensor names, the storage formats in use.

A checkpoint is made in FP32, rounded to how it is stored, and read back as the values an engine holds
(`engine_weights`): BF16 for every format except F16 and F32 files, whose values are also rounded to
BF16, since the engine keeps weights in BF16.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

FP8_BLOCK = 128
FP8_MAX = 448.0  # largest finite E4M3 value


@dataclass
class Case:
    """One golden. `config` overrides the base config; `store`: bf16, f16, f32 or fp8."""

    name: str
    seed: int
    config: dict
    moe: bool = False
    store: str = "bf16"
    scale_dtype: torch.dtype = torch.float32  # fp8 only
    num_parts: int = 1


def base_config(moe: bool) -> dict:
    """Fields of the released Qwen3 config.json files, small."""
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": 16,
        "hidden_act": "silu",
        "hidden_size": 64,
        "initializer_range": 0.02,
        "intermediate_size": 96,
        "max_position_embeddings": 512,
        "max_window_layers": 2,
        "model_type": "qwen3",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 320,
    }
    if moe:
        config.update({
            "architectures": ["Qwen3MoeForCausalLM"],
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "model_type": "qwen3_moe",
            "moe_intermediate_size": 48,
            "norm_topk_prob": True,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "output_router_logits": False,
            "router_aux_loss_coef": 0.001,
        })
    return config


def is_sparse(config: dict, layer: int) -> bool:
    """Qwen3MoeDecoderLayer's rule."""
    return (config.get("num_experts", 0) > 0 and layer not in config["mlp_only_layers"]
            and (layer + 1) % config["decoder_sparse_step"] == 0)


def random_weights(config: dict, seed: int) -> dict[str, torch.Tensor]:
    """FP32. Matrices ~ N(0, gain / sqrt(fan in)): activations stay near 1 and logits spread by ~2."""
    generator = torch.Generator().manual_seed(seed)
    hidden, head_dim = config["hidden_size"], config["head_dim"]
    q_rows, kv_rows = (config[k] * head_dim for k in ("num_attention_heads", "num_key_value_heads"))

    def matrix(rows, columns, gain=1.0):
        return torch.randn(rows, columns, generator=generator) * (gain / columns**0.5)

    def norm(size):
        return 1.0 + 0.1 * torch.randn(size, generator=generator)

    def mlp(prefix, width):
        return {f"{prefix}.gate_proj.weight": matrix(width, hidden, 1.5),
                f"{prefix}.up_proj.weight": matrix(width, hidden, 1.5),
                f"{prefix}.down_proj.weight": matrix(hidden, width, 1.5)}

    # a tied embedding is the head too, so it has the head's gain
    weights = {"model.embed_tokens.weight": matrix(config["vocab_size"], hidden, 2.5)
               if config["tie_word_embeddings"] else
               torch.randn(config["vocab_size"], hidden, generator=generator)}
    for n in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{n}"
        weights[f"{prefix}.input_layernorm.weight"] = norm(hidden)
        weights[f"{prefix}.self_attn.q_proj.weight"] = matrix(q_rows, hidden)
        weights[f"{prefix}.self_attn.k_proj.weight"] = matrix(kv_rows, hidden)
        weights[f"{prefix}.self_attn.v_proj.weight"] = matrix(kv_rows, hidden)
        weights[f"{prefix}.self_attn.o_proj.weight"] = matrix(hidden, q_rows)
        weights[f"{prefix}.self_attn.q_norm.weight"] = 1.5 * norm(head_dim)  # attention that attends
        weights[f"{prefix}.self_attn.k_norm.weight"] = 1.5 * norm(head_dim)
        weights[f"{prefix}.post_attention_layernorm.weight"] = norm(hidden)
        if is_sparse(config, n):
            weights[f"{prefix}.mlp.gate.weight"] = matrix(config["num_experts"], hidden, 1.5)
            for e in range(config["num_experts"]):
                weights |= mlp(f"{prefix}.mlp.experts.{e}", config["moe_intermediate_size"])
        else:
            weights |= mlp(f"{prefix}.mlp", config["intermediate_size"])
    weights["model.norm.weight"] = norm(hidden)
    if not config["tie_word_embeddings"]:
        weights["lm_head.weight"] = matrix(config["vocab_size"], hidden, 2.5)
    return weights


def is_quantized(name: str) -> bool:
    """What the official FP8 checkpoints quantize: the projections of attention, MLP and experts."""
    return name.endswith("_proj.weight")


def block_scales(weight: torch.Tensor) -> torch.Tensor:
    """FP32 scale per 128 x 128 block, edge blocks smaller: the largest |value| becomes FP8_MAX."""
    rows, columns = (-(-size // FP8_BLOCK) for size in weight.shape)
    scales = torch.empty(rows, columns)
    for i in range(rows):
        for j in range(columns):
            block = weight[i * FP8_BLOCK : (i + 1) * FP8_BLOCK, j * FP8_BLOCK : (j + 1) * FP8_BLOCK]
            scales[i, j] = block.abs().max() / FP8_MAX
    return scales


def spread_blocks(weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Makes neighbouring blocks differ in scale by up to 4, so that reading a wrong one shows."""
    rows, columns = (-(-size // FP8_BLOCK) for size in weight.shape)
    return weight * expand_scales(2.0 ** (2 * torch.rand(rows, columns, generator=generator) - 1), weight.shape)


def expand_scales(scales: torch.Tensor, shape) -> torch.Tensor:
    rows = scales.repeat_interleave(FP8_BLOCK, dim=0)[: shape[0]]
    return rows.repeat_interleave(FP8_BLOCK, dim=1)[:, : shape[1]]


def stored_tensors(weights: dict, case: Case) -> dict[str, torch.Tensor]:
    store = case.store
    if store != "fp8":
        dtype = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}[store]
        return {name: tensor.to(dtype) for name, tensor in weights.items()}
    generator, stored = torch.Generator().manual_seed(case.seed), {}
    for name, tensor in weights.items():
        if is_quantized(name):
            tensor = spread_blocks(tensor, generator)
            scales = block_scales(tensor).to(case.scale_dtype).float()
            stored[name] = (tensor / expand_scales(scales, tensor.shape)).clamp(
                -FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
            stored[name + "_scale_inv"] = scales.to(case.scale_dtype)
        else:
            stored[name] = tensor.bfloat16()
    return stored


def engine_weights(stored: dict) -> dict[str, torch.Tensor]:
    """What the engine computes with, as FP32 tensors holding BF16 values."""
    weights = {}
    for name, tensor in stored.items():
        if name.endswith("_scale_inv"):
            continue
        value = tensor.float()
        if tensor.dtype == torch.float8_e4m3fn:
            value = value * expand_scales(stored[name + "_scale_inv"].float(), tensor.shape)
        weights[name] = value.bfloat16().float()
    return weights


def write(folder: Path, config: dict, stored: dict, num_parts: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if num_parts == 1:
        save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(stored)
    per_part = -(-len(names) // num_parts)
    weight_map = {}
    for i in range(num_parts):
        part = f"model-{i + 1:05d}-of-{num_parts:05d}.safetensors"
        chosen = names[i * per_part : (i + 1) * per_part]
        save_file({name: stored[name] for name in chosen}, folder / part, metadata={"format": "pt"})
        weight_map |= {name: part for name in chosen}
    total = sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
