#!/usr/bin/env python3
"""What quantized weights cost: loss and right answers of the demo model, per --weight_dtype.

Usage: weight_quality.py [--bin build/release/bin] [--model models/demo] [--dtypes bf16 int8 int4]

Loss is in nats a token, by `conclave score`: of the worked solutions of the recipe's held-out
problems (tools/demo_model/eval_sets.py; only what the model writes itself counts), and of the
Apache licence's text, which is nothing like what it was trained on. Right answers are those of the
held-out problems, greedy, over HTTP (tools/thinking_curve). "flips" are the tokens of the worked
solutions whose probability fell by more than half against the first dtype.

Needs numpy and jinja2, as the recipe does.
"""
import argparse
import csv
import json
import math
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools" / "demo_model"))
import conversation  # noqa: E402
import eval_sets  # noqa: E402

CHUNK = 512  # tokens of running text scored at a time


def json_lines(command, records):
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    result = subprocess.run(command, input=text, check=True, stdout=subprocess.PIPE, text=True)
    return [json.loads(line) for line in result.stdout.splitlines()]


def tokenize(args, texts):
    lines = json_lines([args.bin / "conclave", "tokenize", "--model", args.model],
                       [{"text": text} for text in texts])
    return [line["ids"] for line in lines]


def score(args, dtype, sequences):
    lines = json_lines([args.bin / "conclave", "score", "--model", args.model,
                        "--weight_dtype", dtype], [{"ids": ids} for ids in sequences])
    return [line["logprobs"] for line in lines]


def solutions(args):
    """(ids, number of prompt ids) of each held-out problem with its worked solution."""
    samples = eval_sets.arithmetic()
    template = conversation.Template()
    prompts = tokenize(args, [template.prompt(sample) for sample in samples])
    replies = tokenize(args, [conversation.reply_text(sample) for sample in samples])
    return [(prompt + reply, len(prompt)) for prompt, reply in zip(prompts, replies)]


def right_answers(args, dtype):
    """Percent of the held-out problems, thinking as long as it likes."""
    process = subprocess.Popen(
        [args.bin / "conclave", "up", "--model", args.model, "--weight_dtype", dtype,
         "--log_level", "error"], stdout=subprocess.PIPE, text=True)
    try:
        url = None
        for line in process.stdout:
            match = re.match(r"router .* HTTP (\S+)/v1 ", line)
            if match:
                url = match[1]
            if line.startswith("Conclave is ready"):
                break
        with tempfile.TemporaryDirectory() as folder:
            table = pathlib.Path(folder) / "curve.csv"
            subprocess.run([ROOT / "tools" / "thinking_curve", "--url", url, "--csv", table,
                            "--budgets", "unlimited"], check=True, stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL)
            with table.open() as file:
                return float(next(csv.DictReader(file))["all"])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build/release/bin")
    parser.add_argument("--model", type=pathlib.Path, default=ROOT / "models/demo")
    parser.add_argument("--dtypes", nargs="+", default=["bf16", "int8", "int4"])
    args = parser.parse_args()
    solved = solutions(args)
    (licence,) = tokenize(args, [(ROOT / "LICENSE").read_text()])
    text = [licence[i:i + CHUNK] for i in range(0, len(licence) - 1, CHUNK)]
    print("| weights | loss, solutions | flips | loss, licence | right answers, % |")
    print("|---|---|---|---|---|")
    first = None
    for dtype in args.dtypes:
        # The logprob at i is that of token i + 1.
        own = [value for (_, prompt), values in zip(
            solved, score(args, dtype, [ids for ids, _ in solved]))
            for value in values[prompt - 1:]]
        other = [value for values in score(args, dtype, text) for value in values]
        first = first or own
        flips = sum(new < old - math.log(2) for new, old in zip(own, first))
        print(f"| {dtype} | {-statistics.fmean(own):.4f} | {flips} of {len(own)} | "
              f"{-statistics.fmean(other):.3f} | {right_answers(args, dtype):.1f} |", flush=True)


if __name__ == "__main__":
    main()
