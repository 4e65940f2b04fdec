"""Parity goldens: tiny random Qwen3 checkpoints and what Hugging Face transformers computes of them.

    python tools/goldens/make_hf_parity.py --out tests/data/hf_parity

Every case is a folder with config.json, the weights and golden.json:

    {"versions": {"torch": .., "transformers": ..}, "model_class": "Qwen3ForCausalLM",
     "sequences": [{"ids": [n], "logprobs": [n - 1], "top_id": [n], "top_margin": [n],
                    "gate_margin": [n] (MoE only), "final_logits_first16": [16]}],
     "greedy": [{"prompt_ids": [..], "output_ids": [..], "margins": [..]}]}

logprobs[i] = log p(ids[i + 1] | ids[: i + 1]); top_id[i] is the argmax after ids[: i + 1] and
top_margin[i] its lead in logits over the second; gate_margin[i] is the smallest lead, over the MoE
layers, in gate logits of the last chosen expert over the first not chosen: where it is tiny, rounding
may choose another expert. Greedy prompts are drawn until no step and no gate is near a tie. Greedy output ends after an eos id, which is included.

The arithmetic is FP32 throughout (eager attention) on the weights an engine holds: rounded to BF16;
FP8 weights are value * block scale in FP32, then BF16. Only transformers' own classes compute.
"""

import argparse
import json
import math
import random
import tempfile
from pathlib import Path

import torch
import transformers
from transformers import Qwen3ForCausalLM, Qwen3MoeForCausalLM

import checkpoints
from checkpoints import Case

SEQUENCE_LENGTHS = (1, 17, 150)
GREEDY_PROMPT_LENGTHS = (1, 9, 20)
GREEDY_TOKENS = 8
# In logits. An engine that rounds to BF16 is within 0.19 of a logprob (tests/worker/hf_parity_test.cc),
# so that a smaller lead, or an expert chosen by a hair, is a toss-up.
MIN_GREEDY_MARGIN = 0.2
MIN_GATE_MARGIN = 0.03
MIN_PROMPT_GATE_MARGIN = 0.01  # of earlier positions, which a step only attends to

_FP8 = {"hidden_size": 192, "head_dim": 32, "num_attention_heads": 6, "num_key_value_heads": 2,
        "intermediate_size": 320, "tie_word_embeddings": True}  # 192 x 320: ragged 128 x 128 blocks

CASES = [
    Case("dense_tied", 101, {"tie_word_embeddings": True}),
    Case("dense_untied", 102, {}),
    # q_proj is [6 * 24, 56]: head_dim is neither hidden_size / heads nor a power of two
    Case("dense_gqa_head_dim", 103, {"hidden_size": 56, "intermediate_size": 72, "num_attention_heads": 6,
                                     "num_key_value_heads": 2, "head_dim": 24}),
    Case("dense_yarn", 104, {"head_dim": 32, "rope_theta": 10000.0, "max_position_embeddings": 256,
                             "rope_scaling": {"rope_type": "yarn", "factor": 4.0,
                                              "original_max_position_embeddings": 64}}),
    Case("dense_f16", 105, {"torch_dtype": "float16"}, store="f16"),
    Case("dense_f32", 106, {"torch_dtype": "float32", "num_hidden_layers": 1}, store="f32"),
    Case("dense_sharded", 107, {"num_hidden_layers": 3}, num_parts=2),
    Case("moe_norm_topk", 108, {"tie_word_embeddings": True, "moe_intermediate_size": 32}, moe=True),
    # only layer 1 is sparse: 0 and 2 are dense by decoder_sparse_step, 3 by mlp_only_layers
    Case("moe_mixed_layers", 109, {"norm_topk_prob": False, "num_experts": 6, "num_experts_per_tok": 3,
                                   "num_hidden_layers": 4, "decoder_sparse_step": 2,
                                   "mlp_only_layers": [3], "moe_intermediate_size": 48}, moe=True),
    Case("fp8_dense", 110, _FP8, store="fp8"),
    Case("fp8_dense_bf16_scale", 111, _FP8 | {"num_hidden_layers": 1, "intermediate_size": 160},
         store="fp8", scale_dtype=torch.bfloat16),
    Case("fp8_moe", 112, _FP8 | {"num_experts": 4, "moe_intermediate_size": 160, "num_hidden_layers": 1},
         moe=True, store="fp8"),
]


def build_config(case: Case) -> dict:
    config = checkpoints.base_config(case.moe) | case.config
    if case.store == "fp8":
        layers = range(config["num_hidden_layers"])
        kept = [f"model.layers.{n}.{name}" for n in layers for name in (
            ["input_layernorm", "post_attention_layernorm"] + (["mlp.gate"] if case.moe else []))]
        config["quantization_config"] = {
            "activation_scheme": "dynamic", "fmt": "e4m3", "modules_to_not_convert": ["lm_head"] + kept,
            "quant_method": "fp8", "weight_block_size": [checkpoints.FP8_BLOCK] * 2}
    return config


def load_model(case: Case, config: dict, stored: dict):
    """transformers' model in FP32 holding exactly the engine's weights."""
    cls = Qwen3MoeForCausalLM if case.moe else Qwen3ForCausalLM
    weights = checkpoints.engine_weights(stored)
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    with tempfile.TemporaryDirectory() as folder:
        checkpoints.write(Path(folder), plain, weights, num_parts=1)
        model, info = cls.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager",
                                          output_loading_info=True)
    problems = {key: value for key, value in info.items() if value}
    assert not problems, (case.name, problems)
    count = sum(p.numel() for p in model.parameters())
    assert count == sum(w.numel() for w in weights.values()), (case.name, count)
    return model.eval()


def check_reads_as_stored(case: Case, folder: Path, model) -> None:
    """The committed files, read by transformers itself, are the weights the golden was made of."""
    if case.store == "fp8":
        return  # transformers' FP8 loader wants a GPU
    read = type(model).from_pretrained(folder, dtype=torch.bfloat16)
    for (name, mine), (_, theirs) in zip(model.named_parameters(), read.named_parameters()):
        assert torch.equal(mine, theirs.float()), (case.name, name)


def check_yarn(config: dict, model) -> None:
    """transformers applied YaRN: compares its frequencies with the formula of the paper."""
    scaling, dim, base = config["rope_scaling"], config["head_dim"], config["rope_theta"]
    rotary = model.model.rotary_emb
    half = torch.arange(0, dim, 2, dtype=torch.float64) / dim
    plain = base**-half
    if scaling is None:
        expected, attention_factor = plain, 1.0
    else:
        original, factor = scaling["original_max_position_embeddings"], scaling["factor"]

        def correction(rotations):
            return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

        low, high = max(math.floor(correction(32)), 0), min(math.ceil(correction(1)), dim - 1)
        ramp = ((torch.arange(dim // 2, dtype=torch.float64) - low) / (high - low)).clamp(0, 1)
        expected = plain / factor * ramp + plain * (1 - ramp)
        attention_factor = 0.1 * math.log(factor) + 1.0
    assert torch.allclose(rotary.inv_freq.double(), expected, rtol=1e-5), rotary.inv_freq
    assert abs(rotary.attention_scaling - attention_factor) < 1e-9, rotary.attention_scaling


def rounded(values, digits: int = 6) -> list[float]:
    return [round(float(value), digits) for value in values]


@torch.no_grad()
def sequence_golden(case: Case, model, ids: list[int]) -> dict:
    kwargs = {"output_router_logits": True} if case.moe else {}
    out = model(input_ids=torch.tensor([ids]), use_cache=False, **kwargs)
    logits = out.logits[0].float()
    logprobs = logits.log_softmax(-1)
    best = logits.topk(2, dim=-1).values
    golden = {
        "ids": ids,
        "logprobs": rounded(logprobs[i, ids[i + 1]] for i in range(len(ids) - 1)),
        "top_id": logits.argmax(-1).tolist(),
        "top_margin": rounded(best[:, 0] - best[:, 1], 4),
        "final_logits_first16": rounded(logits[-1, :16]),
    }
    if case.moe:
        golden["gate_margin"] = gate_margins(model, out)
    return golden


def gate_margins(model, out) -> list[float]:
    """Of every position, the smallest over the MoE layers."""
    margins, k = [], model.config.num_experts_per_tok
    for gate_logits in out.router_logits:
        ordered = gate_logits.float().sort(dim=-1, descending=True).values
        margins.append(ordered[:, k - 1] - ordered[:, k])
    return rounded(torch.stack(margins).min(0).values, 4)


@torch.no_grad()
def greedy_golden(case: Case, model, prompt: list[int]) -> tuple[dict, bool]:
    """-> (golden, whether no choice in it was a toss-up)."""
    out = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                         do_sample=False, max_new_tokens=GREEDY_TOKENS, return_dict_in_generate=True,
                         output_logits=True, pad_token_id=0)
    best = [step[0].float().topk(2).values for step in out.logits]
    golden = {"prompt_ids": prompt, "output_ids": out.sequences[0, len(prompt):].tolist(),
              "margins": rounded((values[0] - values[1] for values in best), 4)}
    clear = min(golden["margins"]) >= MIN_GREEDY_MARGIN
    if case.moe:
        again = model(input_ids=out.sequences, use_cache=False, output_router_logits=True)
        margins = gate_margins(model, again)[:-1]
        clear &= min(margins) >= MIN_PROMPT_GATE_MARGIN
        clear &= min(margins[len(prompt) - 1 :]) >= MIN_GATE_MARGIN
    return golden, clear


def find_greedy(case: Case, model, rng: random.Random, length: int, vocab_size: int) -> dict:
    """A prompt whose continuation has no near tie and is not one token over and over."""
    for _ in range(4000):
        golden, clear = greedy_golden(case, model, [rng.randrange(3, vocab_size) for _ in range(length)])
        if clear and len(golden["output_ids"]) == GREEDY_TOKENS and len(set(golden["output_ids"])) >= 5:
            return golden
    raise RuntimeError("no prompt with clear margins; choose another seed")


def make_case(case: Case, out: Path) -> None:
    config = build_config(case)
    stored = checkpoints.stored_tensors(checkpoints.random_weights(config, case.seed), case)
    model = load_model(case, config, stored)
    check_yarn(config, model)
    folder = out / case.name
    checkpoints.write(folder, config, stored, case.num_parts)
    check_reads_as_stored(case, folder, model)
    rng = random.Random(case.seed)
    vocab_size = config["vocab_size"]
    golden = {
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "model_class": type(model).__name__,
        "sequences": [sequence_golden(case, model, [rng.randrange(vocab_size) for _ in range(length)])
                      for length in SEQUENCE_LENGTHS],
        "greedy": [find_greedy(case, model, rng, length, vocab_size) for length in GREEDY_PROMPT_LENGTHS],
    }
    (folder / "golden.json").write_text(json.dumps(golden) + "\n")
    size = sum(path.stat().st_size for path in folder.iterdir())
    longest = golden["sequences"][-1]
    print(f"{case.name:22s} {size / 1024:6.0f} KiB  mean logprob "
          f"{sum(longest['logprobs']) / len(longest['logprobs']):.2f}  median top margin "
          f"{sorted(longest['top_margin'])[len(longest['ids']) // 2]:.2f}  distinct top ids "
          f"{len(set(longest['top_id']))}  min gate margin {min(longest.get('gate_margin', [0])):.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", help="name of one case")
    args = parser.parse_args()
    torch.set_num_threads(1)  # one order of additions
    for case in CASES:
        if args.only in (None, case.name):
            make_case(case, args.out)


if __name__ == "__main__":
    main()
