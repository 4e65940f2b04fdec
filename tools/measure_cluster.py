#!/usr/bin/env python3
"""Prefill and decode speed of a cluster that `conclave up` starts, measured through the public API.

Usage: measure_cluster.py --bin build/release/bin --model DIR [--shards 0 2] [--concurrency 1 16]

Prefill: seconds(prompt of P tokens, 1 new) - seconds(prompt of 1 token, 1 new).
Decode: seconds(N + 1 new tokens) - seconds(1 new token), so that start-up, transport and prefill
cancel. Medians of --repeat runs. Standard library only.
"""
import argparse
import concurrent.futures
import pathlib
import re
import signal
import statistics
import subprocess
import time


def start(args, shards):
    began = time.monotonic()
    process = subprocess.Popen(
        [args.bin / "conclave", "up", "--model", args.model, "--shards", str(shards),
         "--threads", str(args.threads), "--log_level", "error", *args.up_flags],
        stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        match = re.match(r"router +gRPC (\S+)", line)
        if match:
            endpoint = match[1]
        if line.startswith("Conclave is ready"):
            return process, endpoint, time.monotonic() - began
    raise SystemExit(f"the cluster did not start: exit code {process.wait()}")


def seconds(args, endpoint, prompt, new_tokens, concurrency=1):
    """Wall time of `concurrency` equal requests with different prompts, sent together."""
    def ask(number):
        ids = " ".join(str((17 * i + number) % 200 + 1) for i in range(prompt))
        subprocess.run(
            [args.bin / "conclave", "generate", ids, "--ids", "--endpoint", endpoint, "--json",
             "--ignore_eos", "--temperature", "0", "--max_tokens", str(new_tokens)],
            check=True, stdout=subprocess.DEVNULL)

    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(concurrency) as pool:
        list(pool.map(ask, range(concurrency)))
    return time.monotonic() - began


def median(repeat, measure):
    return statistics.median(measure() for _ in range(repeat))


def measure(args, shards):
    """Starts a cluster, measures it and stops it; tokens a second, decode one per concurrency."""
    process, endpoint, ready = start(args, shards)
    try:
        seconds(args, endpoint, args.prompt, 2)  # warm
        short = median(args.repeat, lambda: seconds(args, endpoint, 1, 1))
        whole = median(args.repeat, lambda: seconds(args, endpoint, args.prompt, 1))
        decode = []
        for concurrency in args.concurrency:
            few = median(args.repeat, lambda: seconds(args, endpoint, 16, 1, concurrency))
            many = median(args.repeat, lambda: seconds(args, endpoint, 16, 1 + args.new_tokens,
                                                       concurrency))
            decode.append(concurrency * args.new_tokens / (many - few))
        return {"ready": ready, "first_token": short, "decode": decode,
                "prefill": (args.prompt - 1) / (whole - short)}
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bin", type=pathlib.Path, default="build/release/bin")
    parser.add_argument("--model", required=True)
    parser.add_argument("--shards", type=int, nargs="+", default=[0])
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new_tokens", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--up_flags", nargs=argparse.REMAINDER, default=[],
                        help="the rest of the line goes to `conclave up`")
    args = parser.parse_args()
    print("shards  ready s  first token ms  prefill tok/s  " +
          "  ".join(f"decode x{c} tok/s" for c in args.concurrency))
    for shards in args.shards:
        figures = measure(args, shards)
        print(f"{shards:6d}  {figures['ready']:7.2f}  {figures['first_token'] * 1e3:14.1f}  "
              f"{figures['prefill']:13.1f}  " +
              "  ".join(f"{rate:14.1f}" for rate in figures["decode"]), flush=True)


if __name__ == "__main__":
    main()
