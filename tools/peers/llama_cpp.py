#!/usr/bin/env python3
"""Measures llama.cpp and Conclave beside each other on random weights of the same shapes.

    pip download --no-deps --no-binary :all: llama-cpp-python   # carries llama.cpp's sources
    pip install gguf numpy
    tools/peers/llama_cpp.py build --sdist llama_cpp_python-*.tar.gz --work /tmp/peer
    tools/peers/llama_cpp.py run --work /tmp/peer --model CHECKPOINT... [--types bf16 int8]

`build` compiles llama-bench and llama-batched-bench for this CPU (some minutes). `run` writes each
CHECKPOINT (of `conclave synth`) as GGUF and prints a table: tokens a second of decode with 1 and 16
sequences and of a prefill of 512, and ratios. The two take turns, --rounds times, and medians
are kept, because machines that share a host move by a factor of two. BF16 is set against BF16, Q8_0
against int8.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tarfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import measure_cluster  # noqa: E402

GGUF_TYPE = {"bf16": "BF16", "int8": "Q8_0"}
COLUMNS = ["decode 1", "decode 16", "prefill 512"]


def build(args):
    args.work.mkdir(parents=True, exist_ok=True)
    with tarfile.open(args.sdist) as archive:
        archive.extractall(args.work, filter="data")
    source = next(args.work.glob("llama_cpp_python-*/vendor/llama.cpp"))
    out = args.work / "build"
    subprocess.run(
        ["cmake", "-S", source, "-B", out, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
         "-DGGML_NATIVE=ON", "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_BUILD_TESTS=OFF",
         "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_SERVER=OFF", "-DLLAMA_CURL=OFF",
         "-DLLAMA_OPENSSL=OFF"], check=True)
    subprocess.run(["ninja", "-C", out, "llama-bench", "llama-batched-bench"], check=True)


def output_of(command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                          text=True).stdout


def measure_llama(args, model):
    tools = args.work / "build" / "bin"
    rows = json.loads(output_of(
        [tools / "llama-bench", "-m", model, "-t", str(args.threads), "-p", "512", "-n", "32",
         "-r", "2", "-o", "json"]))
    speed = {"prefill" if row["n_prompt"] else "decode": row["avg_ts"] for row in rows}
    batched = output_of(
        [tools / "llama-batched-bench", "-m", model, "-t", str(args.threads), "-tb",
         str(args.threads), "-c", "2048", "-npp", "16", "-ntg", "32", "-npl", "16",
         "--output-format", "jsonl"])
    sixteen = [json.loads(line) for line in batched.splitlines() if line.startswith("{")][-1]
    return {"decode 1": speed["decode"], "decode 16": sixteen["speed_tg"],
            "prefill 512": speed["prefill"]}


def measure_conclave(args, checkpoint, weight_dtype):
    cluster = argparse.Namespace(
        bin=args.bin, model=str(checkpoint), threads=args.threads, prompt=513, new_tokens=32,
        repeat=2, concurrency=[1, 16], kv_cache_tokens=16384,
        up_flags=["--weight_dtype", weight_dtype])
    figures = measure_cluster.measure(cluster, "1+0")
    return {"decode 1": figures["decode"][0], "decode 16": figures["decode"][1],
            "prefill 512": figures["prefill"]}


def medians(runs):
    return {column: statistics.median(run[column] for run in runs) for column in COLUMNS}


def print_row(*cells):
    print("| " + " | ".join(cells) + " |", flush=True)


def run(args):
    import gguf_model  # needs gguf and numpy, which `build` does not
    print_row("shape, weights", *(f"{c}: llama.cpp / Conclave" for c in COLUMNS), "ratios")
    print_row(*["---"] * (len(COLUMNS) + 2))
    for checkpoint in args.model:
        for weight_dtype in args.types:
            kind = GGUF_TYPE[weight_dtype]
            model = args.work / f"{checkpoint.name}-{kind}.gguf"
            if not model.exists():
                gguf_model.write_model(checkpoint, model, kind)
            peer, own = [], []
            for _ in range(args.rounds):
                peer.append(measure_llama(args, model))
                own.append(measure_conclave(args, checkpoint, weight_dtype))
            peer, own = medians(peer), medians(own)
            print_row(f"{checkpoint.name}, {kind} and {weight_dtype}",
                      *(f"{peer[c]:.1f} / {own[c]:.1f}" for c in COLUMNS),
                      " · ".join(f"{own[c] / peer[c]:.2f}" for c in COLUMNS))
            if not args.keep:
                model.unlink()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=["build", "run"])
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--sdist", type=pathlib.Path)
    parser.add_argument("--model", type=pathlib.Path, nargs="+", default=[])
    parser.add_argument("--types", nargs="+", choices=list(GGUF_TYPE), default=list(GGUF_TYPE))
    parser.add_argument("--bin", type=pathlib.Path, default="build/release/bin")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="keep the GGUF files")
    args = parser.parse_args()
    if args.command == "build":
        if args.sdist is None:
            parser.error("build needs --sdist")
        build(args)
    else:
        run(args)


if __name__ == "__main__":
    main()
