#!/usr/bin/env python3
"""Speed of clusters that `conclave up` starts, as ratios to one worker with its experts inside.

Usage: cluster_bench.py [--bin build/release/bin] [--model DIR ..] [--quick]

One table a model: workers+shards 1+0, 0 shards being the experts in the worker, then 1+2 and 2+2;
a dense model has 1+0 and 2+0. Every cluster gets the same compute threads. Load comes from
`conclave bench`: decode is sequences over the median time per output token, prefill prompt tokens
over the median time to first token. Medians of --repeat runs on each cluster. Every process that is
started is stopped, on Ctrl-C too. Standard library only.
"""
import argparse
import json
import pathlib
import re
import signal
import statistics
import subprocess
import time

TOPOLOGIES = {True: [(1, 0), (1, 2), (2, 2)], False: [(1, 0), (2, 0)]}
SEQUENCES = 16
PREFILL_TOKENS = 512


class Cluster:
    """A running `conclave up`, stopped at the end of a with block."""

    def __init__(self, args, model, workers, shards):
        self.args = args
        began = time.monotonic()
        # A session of its own: a Ctrl-C reaches this script alone, which stops the cluster once.
        self.process = subprocess.Popen(
            [args.bin / "conclave", "up", "--model", model, "--workers", str(workers),
             "--shards", str(shards), "--threads", str(args.threads), "--log_level", "error",
             "--kv_cache_tokens", "16384"],
            stdout=subprocess.PIPE, text=True, start_new_session=True)
        try:
            self.endpoint = self._await_ready()
        except BaseException:
            self.stop()
            raise
        self.ready_seconds = time.monotonic() - began

    def _await_ready(self):
        endpoint = None
        for line in self.process.stdout:
            match = re.match(r"router +gRPC (\S+)", line)
            if match:
                endpoint = match[1]
            if line.startswith("Conclave is ready"):
                return endpoint
        raise SystemExit(f"the cluster did not start: exit code {self.process.wait()}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        self.process.terminate()
        self.process.communicate()

    def bench(self, concurrency, input_len, output_len, seed):
        """One run of `conclave bench`: `concurrency` requests at once."""
        done = subprocess.run(
            [self.args.bin / "conclave", "bench", "--endpoint", self.endpoint, "--json",
             "--concurrency", str(concurrency), "--num_requests", str(concurrency),
             "--input_len", str(input_len), "--output_len", str(output_len),
             "--temperature", "0", "--seed", str(seed)],
            stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(f"conclave bench failed: {done.stdout}")
        return json.loads(done.stdout)


def measure(args, model, workers, shards):
    """Rates in tokens a second, by column."""
    with Cluster(args, model, workers, shards) as cluster:
        rates = {"decode 1": [], f"decode {SEQUENCES}": [], f"prefill {PREFILL_TOKENS}": []}
        tail = []
        for seed in range(1, args.repeat + 1):
            one = cluster.bench(1, 16, args.new_tokens, seed)
            many = cluster.bench(SEQUENCES, 16, args.new_tokens, seed)
            prompt = cluster.bench(1, PREFILL_TOKENS, 1, seed)
            rates["decode 1"].append(1e3 / one["tpot_ms"]["p50"])
            rates[f"decode {SEQUENCES}"].append(SEQUENCES * 1e3 / many["tpot_ms"]["p50"])
            rates[f"prefill {PREFILL_TOKENS}"].append(
                PREFILL_TOKENS * 1e3 / prompt["ttft_ms"]["p50"])
            tail.append(many["itl_ms"]["p99"])
        medians = {name: statistics.median(values) for name, values in rates.items()}
        return medians, statistics.median(tail), cluster.ready_seconds


def table(args, model):
    config = json.loads((pathlib.Path(model) / "config.json").read_text())
    print(f"cluster: {pathlib.Path(model).name}, {args.threads} threads in all, medians of "
          f"{args.repeat}; ratios are to 1+0")
    base = None
    for workers, shards in TOPOLOGIES[config.get("num_experts", 0) > 0]:
        rates, tail, ready = measure(args, model, workers, shards)
        if base is None:
            base = rates
            print("  ".join([f"{'w+s':4s}"] + [f"{'x ' + name:>13s}" for name in rates] +
                            [f"{name + ' tok/s':>17s}" for name in rates] +
                            [f"{'itl p99 ms':>10s}", f"{'ready s':>7s}"]))
        print("  ".join([f"{workers}+{shards:<2d}"] +
                        [f"{rates[name] / base[name]:13.2f}" for name in rates] +
                        [f"{rates[name]:17.1f}" for name in rates] +
                        [f"{tail:10.1f}", f"{ready:7.1f}"]), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bin", type=pathlib.Path, default="build/release/bin")
    parser.add_argument("--model", nargs="+", default=["models/demo"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--new_tokens", type=int, default=48)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one run of each")
    args = parser.parse_args()
    if args.quick:
        args.repeat = 1

    def interrupt(*_):
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        for model in args.model:
            table(args, model)
    except KeyboardInterrupt:
        raise SystemExit("interrupted; every process was stopped")


if __name__ == "__main__":
    main()
