#!/usr/bin/env python3
"""Accuracy of a served demo model on held-out problems, against the thinking budget.

Usage: demo_accuracy.py --bin build/release/bin --endpoint HOST:PORT
           --problems models/demo/eval/heldout.jsonl [--budgets 16 32 64 96 128 192]

Asks every problem greedily through the public API and prints one CSV line per mode: the share of
answers that hold the right number, in percent, for all problems and per number of operands.
Standard library only.
"""
import argparse
import collections
import concurrent.futures
import json
import pathlib
import re
import subprocess


def ask(args, problem, flags):
    done = subprocess.run(
        [args.bin / "conclave", "chat", "--endpoint", args.endpoint, "--json", "--temperature", "0",
         "--max_tokens", "600", "--messages", "-", *flags],
        input=json.dumps(problem["messages"]), capture_output=True, text=True, check=True)
    numbers = re.findall(r"-?\d+", json.loads(done.stdout)["content"].replace(",", ""))
    return bool(numbers) and numbers[-1] == problem["answer"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bin", type=pathlib.Path, default="build/release/bin")
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--problems", type=pathlib.Path, default="models/demo/eval/heldout.jsonl")
    parser.add_argument("--budgets", type=int, nargs="*", default=[16, 32, 64, 96, 128, 192])
    args = parser.parse_args()
    problems = [json.loads(line) for line in args.problems.read_text().splitlines()]
    operands = sorted({problem["num_operands"] for problem in problems})
    modes = {"off": ["--no_think"]}
    modes.update({str(budget): ["--thinking_budget", str(budget)] for budget in args.budgets})
    modes["unlimited"] = ["--think"]
    print("budget,all," + ",".join(f"n={n}" for n in operands))
    for mode, flags in modes.items():
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            right = list(pool.map(lambda problem: ask(args, problem, flags), problems))
        by_operands = collections.defaultdict(list)
        for problem, ok in zip(problems, right):
            by_operands[problem["num_operands"]].append(ok)
        shares = [right] + [by_operands[n] for n in operands]
        print(f"{mode}," + ",".join(f"{100 * sum(s) / len(s):.1f}" for s in shares), flush=True)


if __name__ == "__main__":
    main()
