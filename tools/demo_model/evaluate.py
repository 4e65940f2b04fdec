"""Evaluates a checkpoint with transformers' own model and writes the evaluation files.

    python tools/demo_model/evaluate.py --model models/demo

Writes eval/heldout.jsonl, eval/greedy_prompts.jsonl, eval/results.json and accuracy_vs_budget.png.
"""

import argparse
import json
import re
from pathlib import Path

import torch

import decoding
import eval_sets
from conversation import EARLY_STOP_TEXT, PLAIN_STOP_TEXT

BUDGETS = (16, 32, 64, 96, 128, 192)


class Evaluator:
    def __init__(self, folder: Path):
        self.tokenizer, self.model = decoding.load(folder)

    def prompt_ids(self, sample) -> list[int]:
        """By the checkpoint's own template and tokenizer."""
        kwargs = {"enable_thinking": False} if sample.mode == "off" else {}
        text = self.tokenizer.apply_chat_template(
            sample.messages, tools=sample.tools, add_generation_prompt=True, tokenize=False, **kwargs)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def texts(self, samples, **kwargs) -> list[str]:
        prompts = [self.prompt_ids(sample) for sample in samples]
        outputs = decoding.decode(self.model, self.tokenizer, prompts, **kwargs)
        return [self.tokenizer.decode(ids, skip_special_tokens=False) for ids in outputs]

    def stop_ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


def split_reply(text: str) -> tuple[str | None, str]:
    """-> (thinking or None, answer), <|im_end|> removed."""
    match = re.fullmatch(r"(?s)(?:<think>(.*?)</think>\n\n)?(.*?)(?:<\|im_end\|>)?", text)
    return match.group(1), match.group(2)


def stated_number(text: str) -> int | None:
    numbers = re.findall(r"-?\d+", split_reply(text)[1])
    return int(numbers[-1]) if numbers else None


def accuracy(samples, texts) -> dict:
    """Share of right answers, overall ("all") and per number of operands."""
    right = {}
    for sample, text in zip(samples, texts):
        ok = stated_number(text) == sample.extra["value"]
        for key in ("all", str(sample.extra["num_operands"])):
            right.setdefault(key, []).append(ok)
    return {key: round(100 * sum(values) / len(values), 1) for key, values in sorted(right.items())}


def with_mode(samples, mode: str, suffix: str = ""):
    changed = []
    for sample in samples:
        messages = [dict(m) for m in sample.messages]
        messages[-1]["content"] += suffix
        changed.append(type(sample)(messages, "", "", sample.tools, mode, sample.skill, sample.extra))
    return changed


def share(values) -> float:
    values = list(values)
    return round(100 * sum(values) / len(values), 1)


def arithmetic_results(ev: Evaluator) -> dict:
    samples = eval_sets.arithmetic()
    thinking = ev.texts(samples)
    off, no_think = with_mode(samples, "off"), with_mode(samples, "no_think", " /no_think")
    no_think_texts = ev.texts(no_think)
    results = {"problems": len(samples), "thinking": accuracy(samples, thinking),
               "thinking_off": accuracy(off, ev.texts(off)),
               "no_think_switch": accuracy(no_think, no_think_texts)}
    for temperature, mode, chosen in ((0.6, "thinking", samples), (0.7, "thinking_off", off)):
        sampling = decoding.Sampling(temperature, top_p=0.95 if mode == "thinking" else 0.8, seed=1)
        results[f"{mode}_sampled"] = accuracy(chosen, ev.texts(chosen, sampling=sampling))
    for name, stop_text in (("budget", EARLY_STOP_TEXT), ("budget_plain_stop", PLAIN_STOP_TEXT)):
        for budget in BUDGETS:
            results[f"{name}_{budget}"] = accuracy(
                samples, ev.texts(samples, budget=budget, stop_ids=ev.stop_ids(stop_text)))
    lengths = [len(ev.stop_ids(split_reply(text)[0] or "")) for text in thinking]
    results["thinking_tokens_mean_max"] = [round(sum(lengths) / len(lengths), 1), max(lengths)]
    results["think_block_well_formed"] = share(
        re.fullmatch(r"(?s)<think>\n[^<]+\n</think>\n\n[^<\n]+<\|im_end\|>", t) is not None for t in thinking)
    results["no_think_obeyed"] = share(t.startswith("<think>\n\n</think>\n\n") for t in no_think_texts)
    for language in ("en", "zh", "es", "fr", "de"):
        chosen = eval_sets.arithmetic(seed=77, language=language, per_operands=20)
        results[f"thinking_{language}"] = accuracy(chosen, ev.texts(chosen))
    multi = eval_sets.multi_turn()
    results["multi_turn_thinking"] = share(
        stated_number(t) == s.extra["value"] for s, t in zip(multi, ev.texts(multi)))
    multi_off = with_mode(multi, "off")
    results["multi_turn_off"] = share(
        stated_number(t) == s.extra["value"] for s, t in zip(multi_off, ev.texts(multi_off)))
    return results


def tool_call(text: str) -> dict | None:
    match = re.fullmatch(r"(?s)<tool_call>\n(.*)\n</tool_call>", split_reply(text)[1])
    try:
        return json.loads(match.group(1)) if match else None
    except json.JSONDecodeError:
        return None


def skill_results(ev: Evaluator) -> dict:
    results = {}
    cases = eval_sets.tool_calls()
    for mode in ("think", "off"):
        samples = with_mode([sample for sample, _ in cases], mode)
        calls = [tool_call(text) for text in ev.texts(samples)]
        for name in ("get_weather", "calculate"):
            results[f"{name}_{mode}"] = share(
                call == wanted for call, (_, wanted) in zip(calls, cases) if wanted["name"] == name)
    cases = eval_sets.tool_answers()
    texts = ev.texts([sample for sample, _ in cases])
    results["tool_answer_to_sentence"] = share(
        all(part in split_reply(text)[1] for part in wanted) for text, (_, wanted) in zip(texts, cases))
    greetings = eval_sets.greetings()
    texts = ev.texts([eval_sets.Sample(eval_sets.user(text), "", "") for text, _ in greetings])
    results["greeting"] = share(split_reply(t)[1] == wanted for t, (_, wanted) in zip(texts, greetings))
    return results


@torch.no_grad()
def greedy_record(ev: Evaluator, sample) -> dict:
    """transformers' own greedy generation, one prompt at a time."""
    prompt = ev.prompt_ids(sample)
    out = ev.model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False, temperature=None, top_p=None, top_k=None, max_new_tokens=400,
        return_dict_in_generate=True, output_logits=True)
    best = [step[0].log_softmax(-1).topk(2).values for step in out.logits]
    return {"messages": sample.messages, "tools": sample.tools, "enable_thinking": sample.mode != "off",
            "prompt_ids": prompt, "output_ids": out.sequences[0, len(prompt):].tolist(),
            "margins": [round(float(b[0] - b[1]), 4) for b in best]}


def write_jsonl(path: Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")


def plot(results: dict, path: Path) -> None:
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), dpi=110)
    arithmetic = results["arithmetic"]
    positions = range(len(BUDGETS) + 2)
    for key, style in [("all", "k-o")] + [(str(n), "-") for n in eval_sets.OPERANDS]:
        curve = [arithmetic["thinking_off"][key]] + [arithmetic[f"budget_{b}"][key] for b in BUDGETS]
        axes.plot(positions, curve + [arithmetic["thinking"][key]], style, alpha=1 if key == "all" else 0.6,
                  label="all" if key == "all" else f"{key} operands")
    axes.set_xticks(list(positions), ["off", *map(str, BUDGETS), "unlimited"])
    axes.set(xlabel="thinking budget (tokens)", ylabel="right answers (%)", ylim=(0, 102),
             title=f"{arithmetic['problems']} held-out problems, greedy")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--skip_greedy", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(2)
    ev = Evaluator(args.model)
    (args.model / "eval").mkdir(exist_ok=True)
    write_jsonl(args.model / "eval/heldout.jsonl",
                [{"messages": s.messages, "answer": str(s.extra["value"]), "language": s.extra["language"],
                  "num_operands": s.extra["num_operands"]} for s in eval_sets.arithmetic()])
    results = {"arithmetic": arithmetic_results(ev), "skills": skill_results(ev)}
    print(json.dumps(results, indent=1))
    (args.model / "eval/results.json").write_text(json.dumps(results, indent=1) + "\n")
    plot(results, args.model / "accuracy_vs_budget.png")
    if not args.skip_greedy:
        records = [greedy_record(ev, sample) for sample in eval_sets.greedy_prompts()]
        write_jsonl(args.model / "eval/greedy_prompts.jsonl", records)
        print(f"greedy prompts {len(records)}, smallest margin {min(min(r['margins']) for r in records)}")


if __name__ == "__main__":
    main()
