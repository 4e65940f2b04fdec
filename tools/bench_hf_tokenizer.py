#!/usr/bin/env python3
"""Measures Hugging Face's tokenizers on the texts that tokenizer_bench --write_texts=DIR left.

Usage: bench_hf_tokenizer.py TOKENIZER_JSON DIR [--chunk_bytes N] [--passes N]

One thread, the same chunks, the thread's CPU time; needs `pip install tokenizers`.
"""
import argparse
import os
import pathlib
import statistics
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

import tokenizers  # noqa: E402  (reads the environment when it is loaded)


def chunks(data: bytes, size: int):
    """Pieces of at most `size` bytes, cut between characters."""
    at = 0
    while at < len(data):
        end = min(at + size, len(data))
        while end < len(data) and data[end] & 0xC0 == 0x80:
            end -= 1
        yield data[at:end].decode()
        at = end


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("tokenizer_json")
    parser.add_argument("texts", type=pathlib.Path)
    parser.add_argument("--chunk_bytes", type=int, default=8192)
    parser.add_argument("--passes", type=int, default=3)
    args = parser.parse_args()
    engine = tokenizers.Tokenizer.from_file(args.tokenizer_json)
    print(f"tokenizers {tokenizers.__version__}")
    for path in sorted(args.texts.glob("*.txt")):
        data = path.read_bytes()
        pieces = list(chunks(data, args.chunk_bytes))
        seconds = []
        for _ in range(args.passes):
            begin = time.thread_time()
            num_tokens = sum(len(engine.encode(p, add_special_tokens=False).ids) for p in pieces)
            seconds.append(time.thread_time() - begin)
        rates = [len(data) / 1e6 / s for s in seconds]
        print(
            f"{path.stem:14} {len(data) / 1e6:6.1f} MB {num_tokens:9} tokens  "
            f"best {max(rates):6.2f} MB/s  median {statistics.median(rates):6.2f} MB/s"
        )


if __name__ == "__main__":
    main()
