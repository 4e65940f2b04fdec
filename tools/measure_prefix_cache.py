#!/usr/bin/env python3
"""Time to the first token of a chat's second turn: with the prefix cache, and cold.

Usage: measure_prefix_cache.py --bin build/release/bin --model DIR [--tokens 2000]

A conversation begins with a long system message of its own. Its first turn thinks and answers;
then the second turn asks for one token, and the time until it is there is taken. Three clusters
get the same conversations: `ahead` (the default), `cached` (--prefill_ahead false) and `cold`
(--prefix_cache false). Medians over the conversations. Standard library only.
"""
import argparse
import json
import pathlib
import random
import re
import signal
import statistics
import subprocess
import time
import urllib.request

WORDS = ("river stone light morning paper window garden number seven orange silent engine "
         "mountain letter shadow copper winter thread yellow harbour").split()


def start(args, flags):
    process = subprocess.Popen(
        [args.bin / "conclave", "up", "--model", args.model, "--threads", str(args.threads),
         "--kv_cache_tokens", str(args.kv_cache_tokens), "--log_level", "error", *flags],
        stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        match = re.search(r"HTTP (http://\S+)/v1", line)
        if match:
            endpoint = match[1]
        if line.startswith("Conclave is ready"):
            return process, endpoint
    raise SystemExit(f"the cluster did not start: exit code {process.wait()}")


def post(endpoint, path, body):
    request = urllib.request.Request(endpoint + path, json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def metric(endpoint, name):
    with urllib.request.urlopen(endpoint + "/metrics") as response:
        text = response.read().decode()
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines()
               if line.startswith(name))


def make_system(args, endpoint, seed):
    """A text of about args.tokens tokens, unlike every other from its first words on."""
    choose = random.Random(seed)
    text = f"{seed}."
    while len(post(endpoint, "/tokenize", {"prompt": text})["tokens"]) < args.tokens:
        text += "".join(" " + choose.choice(WORDS) for _ in range(20))
    return text


def first_turn(args, endpoint, system, pause):
    messages = [{"role": "system", "content": system}, {"role": "user", "content": "What is it?"}]
    done = metric(endpoint, "conclave_router_prefill_ahead_total")
    answer = post(endpoint, "/v1/chat/completions", {
        "messages": messages, "max_tokens": args.answer_tokens, "ignore_eos": True,
        "temperature": 0.6, "seed": 1,
        "thinking_budget": args.answer_tokens // 2})
    until = time.monotonic() + pause
    while metric(endpoint, "conclave_router_prefill_ahead_total") == done:
        if time.monotonic() > until:
            break
        time.sleep(0.02)
    text = answer["choices"][0]["message"]["content"] or ""
    return messages + [{"role": "assistant", "content": text},
                       {"role": "user", "content": "Tell me more about it."}]


def second_turn(endpoint, messages):
    began = time.monotonic()
    answer = post(endpoint, "/v1/chat/completions", {
        "messages": messages, "max_tokens": 1, "temperature": 0,
        "chat_template_kwargs": {"enable_thinking": False}})
    usage = answer["usage"]
    return (time.monotonic() - began, usage["prompt_tokens"],
            usage["prompt_tokens_details"]["cached_tokens"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bin", type=pathlib.Path, default="build/release/bin")
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokens", type=int, default=2000, help="of the system message")
    parser.add_argument("--answer_tokens", type=int, default=400, help="of the first turn, half of them thinking")
    parser.add_argument("--kv_cache_tokens", type=int, default=65536)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--conversations", type=int, default=7)
    parser.add_argument("--pause", type=float, default=5,
                        help="seconds between the turns, at most: less if the prefill ahead is done")
    args = parser.parse_args()
    modes = {"ahead": [], "cached": ["--prefill_ahead", "false"],
             "cold": ["--prefix_cache", "false"]}
    print("mode    prompt tokens  cached  second turn's first token ms  to cold")
    rows, conversations = {}, []
    for mode, flags in modes.items():
        process, endpoint = start(args, flags)
        try:
            if mode != "cached":  # warm up
                second_turn(endpoint, [{"role": "user", "content": "hello " * 50}])
            results = []
            for number in range(args.conversations):
                if mode == "ahead":
                    system = make_system(args, endpoint, 1000 + number)
                    conversations.append(first_turn(args, endpoint, system, args.pause))
                elif mode == "cached":
                    first_turn(args, endpoint, conversations[number][0]["content"], 0)
                results.append(second_turn(endpoint, conversations[number]))
            rows[mode] = [statistics.median(column) for column in zip(*results)]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
    for mode, (seconds, prompt, cached) in rows.items():
        print(f"{mode:6}  {prompt:13.0f}  {cached:6.0f}  {seconds * 1e3:28.1f}  "
              f"{seconds / rows['cold'][0]:7.2f}")


if __name__ == "__main__":
    main()
