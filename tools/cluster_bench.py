#!/usr/bin/env python3
"""Speed of clusters that `conclave up` starts, as ratios to one worker with its experts inside.

Usage: cluster_bench.py [--bin build/release/bin] [--model DIR ..] [--quick]

One table a model: workers+shards 1+0, 0 shards being the experts in the worker, then 1+2 and 2+2;
a dense model has 1+0 and 2+0. Every cluster gets the same compute threads. The first stays up and
takes turns with each of the others, so that a machine that gets slower does so for both; ratios are
medians of the turns' own, and the one that waits sleeps. Load comes from `conclave bench`: decode is
sequences over the median time per output token, prefill prompt tokens over the median time to first
token. Every process that is started is stopped, on Ctrl-C too. Standard library only.
"""
import argparse
import json
import pathlib
import signal
import statistics
import subprocess

from running_cluster import RunningCluster

TOPOLOGIES = {True: [(1, 0), (1, 2), (2, 2)], False: [(1, 0), (2, 0)]}
SEQUENCES = 16
PREFILL_TOKENS = 512


class Cluster(RunningCluster):
    """A cluster and the load that is put on it."""

    def __init__(self, args, model, workers, shards):
        super().__init__(args.bin, model, f"{workers}+{shards}", args.threads,
                         "--kv_cache_tokens", "16384")
        self.args = args

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


def rates_of(args, cluster, seed):
    """Tokens a second by column, and the tail of the inter-token latency, in one turn."""
    one = cluster.bench(1, 16, args.new_tokens, seed)
    many = cluster.bench(SEQUENCES, 16, args.new_tokens, seed)
    prompt = cluster.bench(1, PREFILL_TOKENS, 1, seed)
    return {"decode 1": 1e3 / one["tpot_ms"]["p50"],
            f"decode {SEQUENCES}": SEQUENCES * 1e3 / many["tpot_ms"]["p50"],
            f"prefill {PREFILL_TOKENS}": PREFILL_TOKENS * 1e3 / prompt["ttft_ms"]["p50"]
            }, many["itl_ms"]["p99"]


def print_row(cluster, turns, ratios):
    names = list(turns[0][0])
    print("  ".join([f"{cluster.name:4s}"] +
                    [f"{statistics.median(ratio[name] for ratio in ratios):13.2f}"
                     for name in names] +
                    [f"{statistics.median(rates[name] for rates, _ in turns):17.1f}"
                     for name in names] +
                    [f"{statistics.median(tail for _, tail in turns):10.1f}",
                     f"{cluster.ready_seconds:7.1f}"]), flush=True)


def table(args, model):
    config = json.loads((pathlib.Path(model) / "config.json").read_text())
    topologies = TOPOLOGIES[config.get("num_experts", 0) > 0]
    print(f"cluster: {pathlib.Path(model).name}, {args.threads} threads in all, medians of "
          f"{args.repeat}; ratios are to 1+0")
    seeds = range(1, args.repeat + 1)
    with Cluster(args, model, *topologies[0]) as base:
        turns = [rates_of(args, base, seed) for seed in seeds]
        print("  ".join([f"{'w+s':4s}"] + [f"{'x ' + name:>13s}" for name in turns[0][0]] +
                        [f"{name + ' tok/s':>17s}" for name in turns[0][0]] +
                        [f"{'itl p99 ms':>10s}", f"{'ready s':>7s}"]))
        print_row(base, turns, [dict.fromkeys(turns[0][0], 1.0)])
        for workers, shards in topologies[1:]:
            with Cluster(args, model, workers, shards) as cluster:
                turns, ratios = [], []
                for seed in seeds:
                    # New prompts for the base: it has had those of `seed`.
                    beside, _ = rates_of(args, base, seed + 1000 * workers + 100000 * shards)
                    turns.append(rates_of(args, cluster, seed))
                    ratios.append({name: turns[-1][0][name] / beside[name] for name in beside})
                print_row(cluster, turns, ratios)


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
