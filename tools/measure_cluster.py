#!/usr/bin/env python3
"""Speed of clusters that `conclave up` starts, measured through the public API and side by side.

Usage: measure_cluster.py --bin build/release/bin --model DIR [--clusters 1+0 1+2 1+2/grpc 2+2]
                          [--concurrency 1 16]

A cluster is WORKERS+SHARDS, "/grpc" without shared memory. All are up at once and take turns within
each repetition, so that a machine that gets slower does so for all of them; those that wait sleep.
The ratio is the median over the repetitions of a cluster's rate to the first cluster's.

Prefill: seconds(prompt of P tokens, 1 new) - seconds(prompt of 1 token, 1 new).
Decode: seconds(N + 1 new tokens) - seconds(1 new token), so that start-up, transport and prefill
cancel. Standard library only.
"""
import argparse
import concurrent.futures
import pathlib
import re
import statistics
import subprocess
import time
import urllib.request

from running_cluster import RunningCluster


class Cluster(RunningCluster):
    """A cluster whose prompts are sent again and again, so without a prefix cache."""

    def __init__(self, args, name):
        super().__init__(args.bin, args.model, name, args.threads,
                         "--kv_cache_tokens", str(args.kv_cache_tokens),
                         "--prefix_cache", "false", *args.up_flags)
        self.args = args

    def seconds(self, prompt, new_tokens, concurrency=1):
        """Wall time of `concurrency` equal requests with different prompts, sent together."""
        def ask(number):
            ids = " ".join(str((17 * i + number) % 200 + 1) for i in range(prompt))
            subprocess.run(
                [self.args.bin / "conclave", "generate", ids, "--ids", "--endpoint", self.endpoint,
                 "--json", "--ignore_eos", "--temperature", "0", "--max_tokens", str(new_tokens)],
                check=True, stdout=subprocess.DEVNULL)

        began = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(concurrency) as pool:
            list(pool.map(ask, range(concurrency)))
        return time.monotonic() - began

    def prefill_rate(self):
        short = self.seconds(1, 1)
        return (self.args.prompt - 1) / (self.seconds(self.args.prompt, 1) - short)

    def decode_rate(self, concurrency):
        few = self.seconds(16, 1, concurrency)
        many = self.seconds(16, 1 + self.args.new_tokens, concurrency)
        return concurrency * self.args.new_tokens / (many - few)

    def metric(self, name):
        """A metric's sum over the workers and shards, whatever its labels."""
        total = 0.0
        for url in self.metrics:
            for line in urllib.request.urlopen(url).read().decode().splitlines():
                if re.match(name + r"[ {]", line):
                    total += float(line.rsplit(" ", 1)[1])
        return total


def median(repeat, measure):
    return statistics.median(measure() for _ in range(repeat))


def measure(args, name):
    """Starts one cluster, measures it and stops it: medians, tokens a second."""
    cluster = Cluster(args, name)
    try:
        cluster.seconds(args.prompt, 2)  # warm
        return {"prefill": median(args.repeat, cluster.prefill_rate),
                "decode": [median(args.repeat, lambda c=c: cluster.decode_rate(c))
                           for c in args.concurrency]}
    finally:
        cluster.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bin", type=pathlib.Path, default="build/release/bin")
    parser.add_argument("--model", required=True)
    parser.add_argument("--clusters", nargs="+", default=["1+0", "1+2"])
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512, help="0: no prefill")
    parser.add_argument("--new_tokens", type=int, default=32)
    parser.add_argument("--kv_cache_tokens", type=int, default=16384)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--up_flags", nargs=argparse.REMAINDER, default=[],
                        help="the rest of the line goes to `conclave up`")
    args = parser.parse_args()
    measures = {f"decode x{c}": lambda cluster, c=c: cluster.decode_rate(c)
                for c in args.concurrency}
    if args.prompt > 0:
        measures = {f"prefill {args.prompt}": Cluster.prefill_rate, **measures}
    clusters = []
    try:
        for name in args.clusters:
            clusters.append(Cluster(args, name))
            clusters[-1].seconds(max(args.prompt, 16), 2)  # warm
        print(f"{'tokens/s':16s}" + "".join(f"{cluster.name:>20s}" for cluster in clusters))
        for what, measure in measures.items():
            before = [(cluster.metric("conclave_shard_batches_total"),
                       cluster.metric("conclave_shard_batch_dispatches_sum"))
                      for cluster in clusters]
            rates = [[measure(cluster) for cluster in clusters] for _ in range(args.repeat)]
            line = f"{what:16s}"
            merged = f"{'  dispatches met':16s}"
            for i, cluster in enumerate(clusters):
                ratio = statistics.median(row[i] / row[0] for row in rates)
                line += f"{statistics.median(row[i] for row in rates):12.1f} ({ratio:4.2f}x)"
                batches = cluster.metric("conclave_shard_batches_total") - before[i][0]
                taken = cluster.metric("conclave_shard_batch_dispatches_sum") - before[i][1]
                merged += f"{taken / batches:20.2f}" if batches else f"{'-':>20s}"
            print(line, flush=True)
            print(merged, flush=True)
        print(f"{'ready, seconds':16s}" +
              "".join(f"{cluster.ready_seconds:20.1f}" for cluster in clusters))
    finally:
        for cluster in clusters:
            cluster.stop()


if __name__ == "__main__":
    main()
