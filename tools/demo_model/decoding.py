"""Greedy or sampled decoding of many prompts at once with transformers' own model.

Does what the server does with a thinking budget: counts the tokens after <think>, and when the budget
is used up before </think> came, appends the early-stop ids and goes on.
"""

from dataclasses import dataclass

import torch


@dataclass
class Sampling:
    temperature: float = 0.0  # 0: greedy
    top_k: int = 20
    top_p: float = 0.95
    seed: int = 0


def load(folder):
    """Tokenizer and FP32 model (from the BF16 weights) by transformers' own classes."""
    from transformers import AutoTokenizer, Qwen3MoeForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = Qwen3MoeForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return tokenizer, model.eval()


def _choose(logits: torch.Tensor, sampling: Sampling, generator) -> torch.Tensor:
    if sampling.temperature == 0:
        return logits.argmax(-1)
    values, ids = (logits / sampling.temperature).topk(sampling.top_k, dim=-1)
    probs = values.softmax(-1)
    probs[probs.cumsum(-1) - probs > sampling.top_p] = 0
    pick = torch.multinomial(probs / probs.sum(-1, keepdim=True), 1, generator=generator)
    return ids.gather(1, pick)[:, 0]


@torch.no_grad()
def decode(model, tokenizer, prompts: list[list[int]], budget: int | None = None,
           stop_ids: list[int] = (), max_new_tokens: int = 420,
           sampling: Sampling = Sampling()) -> list[list[int]]:
    """prompts -> generated ids, forced ones included, up to and including <|im_end|>."""
    think, end_think, end = (tokenizer.convert_tokens_to_ids(t) for t in
                             ("<think>", "</think>", "<|im_end|>"))
    generator = torch.Generator().manual_seed(sampling.seed)
    width = max(map(len, prompts))
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    outputs: list[list[int]] = [[] for _ in prompts]
    used = [-1] * len(prompts)  # tokens since <think>; -1: not thinking
    queues: list[list[int]] = [[] for _ in prompts]
    done = [False] * len(prompts)
    cache, positions = None, (mask.cumsum(-1) - 1).clamp(min=0)
    for _ in range(max_new_tokens):
        out = model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache,
                    use_cache=True, logits_to_keep=1)
        cache, tokens = out.past_key_values, _choose(out.logits[:, -1], sampling, generator).tolist()
        for row in range(len(prompts)):
            if done[row]:
                tokens[row] = pad
                continue
            if used[row] >= 0 and budget is not None and used[row] >= budget and tokens[row] != end_think:
                queues[row], used[row] = list(stop_ids), -1
            if queues[row]:
                tokens[row] = queues[row].pop(0)
            elif tokens[row] == think:
                used[row] = 0
            elif tokens[row] == end_think:
                used[row] = -1
            elif used[row] >= 0:
                used[row] += 1
            outputs[row].append(tokens[row])
            done[row] = tokens[row] == end
        if all(done):
            break
        ids = torch.tensor(tokens)[:, None]
        mask = torch.cat([mask, torch.ones(len(prompts), 1, dtype=mask.dtype)], dim=1)
        positions = positions[:, -1:] + 1
    return outputs
