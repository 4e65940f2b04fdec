#!/usr/bin/env python3
"""Serves one checkpoint with llama-server and with Conclave in turn, and loads both alike.

    tools/peers/llama_cpp.py build ..., then in its build folder:
    cmake . -DLLAMA_BUILD_SERVER=ON && ninja llama-server
    tools/peers/llama_server.py --server DIR/build/bin/llama-server --model CHECKPOINT

Needs gguf and numpy, to write CHECKPOINT (of `conclave synth`) as GGUF in BF16. Closed loop: so many
clients, each sends its next request when the last one ended; prompts and answers have fixed
lengths. llama-server is asked by its streaming /completion, Conclave by `conclave bench`, each
client for --requests answers after one to warm up. The two take turns, --rounds times; medians.
"""
import argparse
import http.client
import json
import pathlib
import socket
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def complete(port, args, number):
    """One streamed answer: seconds to the first token, and tokens."""
    body = {"prompt": [(17 * i + number) % 200 + 1 for i in range(args.input_len)],
            "n_predict": args.output_len, "temperature": 0, "ignore_eos": True, "stream": True,
            "cache_prompt": False}
    began = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", "/completion", json.dumps(body),
                       {"Content-Type": "application/json"})
    first, tokens = None, 0
    for line in connection.getresponse():
        if not line.startswith(b"data: "):
            continue
        event = json.loads(line[6:])
        if event.get("stop"):
            tokens = event["tokens_predicted"]
        elif first is None:
            first = time.monotonic() - began
    connection.close()
    if tokens != args.output_len:
        raise SystemExit(f"llama-server made {tokens} tokens of {args.output_len}")
    return first, tokens


def load_llama(port, args, clients):
    first_tokens = []

    def client(idx):
        for i in range(args.requests):
            first_tokens.append(complete(port, args, idx * args.requests + i)[0])

    complete(port, args, 0)
    threads = [threading.Thread(target=client, args=(idx,)) for idx in range(clients)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - began
    if len(first_tokens) != clients * args.requests:
        raise SystemExit("a request to llama-server failed")
    return {"tokens/s": len(first_tokens) * args.output_len / seconds,
            "ttft ms": 1e3 * statistics.median(first_tokens)}


def measure_llama(args, model):
    port, most = free_port(), max(args.clients)
    context = most * (args.input_len + args.output_len + 64)
    server = subprocess.Popen(
        [args.server, "-m", model, "-t", str(args.threads), "-tb", str(args.threads), "--port",
         str(port), "-np", str(most), "-c", str(context), "--no-ui"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health").read()
                break
            except (urllib.error.URLError, ConnectionError):
                if server.poll() is not None:
                    raise SystemExit(f"llama-server ended: exit code {server.returncode}")
                time.sleep(0.1)
        return {clients: load_llama(port, args, clients) for clients in args.clients}
    finally:
        server.terminate()
        server.wait()


def measure_conclave(args):
    up = subprocess.Popen([args.bin / "conclave", "up", "--model", args.model, "--threads",
                           str(args.threads), "--log_level", "error"],
                          stdout=subprocess.PIPE, text=True)
    try:
        endpoint = None
        for line in up.stdout:
            if line.startswith("router"):
                endpoint = line.split()[2]
            if line.startswith("Conclave is ready"):
                break
        figures = {}
        for clients in args.clients:
            done = json.loads(subprocess.run(
                [args.bin / "conclave", "bench", "--endpoint", endpoint, "--json", "--temperature",
                 "0", "--concurrency", str(clients), "--num_requests",
                 str(clients * args.requests), "--input_len", str(args.input_len),
                 "--output_len", str(args.output_len)],
                check=True, stdout=subprocess.PIPE, text=True).stdout)
            figures[clients] = {"tokens/s": done["output_tokens_per_second"],
                                "ttft ms": done["ttft_ms"]["p50"]}
        return figures
    finally:
        up.terminate()
        up.communicate()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--server", type=pathlib.Path, required=True)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--bin", type=pathlib.Path, default=pathlib.Path("build/release/bin"))
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--requests", type=int, default=3, help="of each client")
    parser.add_argument("--input_len", type=int, default=64)
    parser.add_argument("--output_len", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    import gguf_model  # beside this file; needs gguf and numpy
    with tempfile.TemporaryDirectory() as folder:
        model = pathlib.Path(folder, "model.gguf")
        gguf_model.write_model(args.model, model, "BF16")
        rounds = [(measure_llama(args, model), measure_conclave(args))
                  for _ in range(args.rounds)]
    print("| clients | tokens/s: llama-server / Conclave | ratio "
          "| ms to first token: llama-server / Conclave |")
    print("|---|---|---|---|")
    for clients in args.clients:
        peer, own = ({what: statistics.median(both[side][clients][what] for both in rounds)
                      for what in ("tokens/s", "ttft ms")} for side in (0, 1))
        print(f"| {clients} | {peer['tokens/s']:.0f} / {own['tokens/s']:.0f} "
              f"| {own['tokens/s'] / peer['tokens/s']:.1f} "
              f"| {peer['ttft ms']:.1f} / {own['ttft ms']:.1f} |")


if __name__ == "__main__":
    main()
