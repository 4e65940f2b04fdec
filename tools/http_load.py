#!/usr/bin/env python3
"""Many concurrent SSE streams through one router: failures, latency, speed, and the router's cost.

Usage: http_load.py [--bin build/release/bin] [--model models/demo] [--streams 1000]
           [--max_tokens 128] [--latency_requests 200] [--json]

Starts `conclave up` with one worker and measures
1. load: all streams at once. Every one must finish. Time to the first token, tokens a second, and
   the CPU time the router took per 1,000 generated tokens, from /proc;
2. latency: one request at a time, the time to its first token when asked of the worker directly
   (gRPC, token ids), of the router by gRPC (the same ids), and of the router by HTTP (the text of
   the same ids). What the router adds is the difference to the worker. The three take turns, so
   that all meet the same machine. --latency_requests 0 leaves it out; it needs grpcio-tools.
Exits with 1 if a stream failed. Client and servers share the machine: with few cores the client's
own work is part of every time.
"""
import argparse
import asyncio
import collections
import contextlib
import json
import os
import pathlib
import re
import resource
import signal
import subprocess
import sys
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[1]
Cluster = collections.namedtuple("Cluster", "worker router url router_pid")
Stream = collections.namedtuple("Stream", "error first_token tokens")  # seconds; None if it failed


@contextlib.contextmanager
def cluster(args):
    """A running cluster; stopped at the end."""
    process = subprocess.Popen(
        [args.bin / "conclave", "up", "--model", args.model, "--workers", "1", "--shards", "0",
         "--log_level", "error"], stdout=subprocess.PIPE, text=True)
    found = {}
    try:
        for line in process.stdout:
            match = re.match(r"(\S+) +gRPC (\S+) .*(http://[^/ ]+)\S* +pid (\d+)$", line)
            if match:
                found[match[1]] = match
            if line.startswith("Conclave is ready"):
                router = found["router"]
                yield Cluster(found["worker-0"][2], router[2], router[3], int(router[4]))
                return
        sys.exit(f"http_load: the cluster did not start: exit code {process.wait()}")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def cpu_seconds(pid):
    """User and system time of a process since it began."""
    stat = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    user, system = stat.rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


# ---- one SSE stream ----


async def read_frames(reader):
    """The data of every SSE frame of a chunked response, as text."""
    buffered = b""
    while True:
        size = int((await reader.readline()).split(b";")[0], 16)
        chunk = await reader.readexactly(size + 2)  # and its line end
        if size == 0:
            return
        buffered += chunk[:-2]
        *frames, buffered = buffered.split(b"\n\n")
        for frame in frames:
            yield frame.decode().removeprefix("data: ")


def has_text(frame):
    """Whether a frame's JSON brings thinking, content or a completion's text."""
    for choice in frame["choices"]:
        delta = choice.get("delta", choice)
        if any(delta.get(key) for key in ("reasoning_content", "content", "text")):
            return True
    return False


async def read_stream(reader, began):
    status = await reader.readline()
    headers = await reader.readuntil(b"\r\n\r\n")
    if b" 200 " not in status:
        length = int(re.search(rb"(?i)content-length: (\d+)", headers)[1])
        return Stream(f"{status.decode().strip()}: {(await reader.readexactly(length)).decode()}",
                      None, 0)
    error, first_token, tokens = "the stream ended without [DONE]", None, 0
    async for data in read_frames(reader):  # to its end, so that the connection can be used again
        if data == "[DONE]":
            error = None
            continue
        frame = json.loads(data)
        if "error" in frame:
            return Stream(data, first_token, tokens)
        if first_token is None and has_text(frame):
            first_token = time.monotonic() - began
        tokens = (frame.get("usage") or {}).get("completion_tokens", tokens)
    return Stream(error, first_token, tokens)


async def ask(connection, path, body):
    reader, writer = connection
    text = json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}})
    began = time.monotonic()
    writer.write(f"POST {path} HTTP/1.1\r\nHost: load\r\nContent-Type: application/json\r\n"
                 f"Content-Length: {len(text)}\r\n\r\n{text}".encode())
    return await read_stream(reader, began)


# ---- load ----


async def load(args, up):
    """Opens every connection, then asks on all of them at once."""
    host, port = up.url.removeprefix("http://").rsplit(":", 1)
    connections = []
    for _ in range(args.streams):
        connections.append(await asyncio.open_connection(host, int(port)))

    async def one(number):
        body = {"temperature": 0, "max_tokens": args.max_tokens, "messages": [
            {"role": "user", "content": f"What is {number} + {37 * number % 100} - 19 + 43?"}]}
        try:
            return await asyncio.wait_for(ask(connections[number], "/v1/chat/completions", body),
                                          args.deadline)
        except (OSError, ValueError, asyncio.TimeoutError, asyncio.IncompleteReadError) as error:
            return Stream(f"{type(error).__name__}: {error}", None, 0)

    try:
        before, began = cpu_seconds(up.router_pid), time.monotonic()
        streams = await asyncio.gather(*map(one, range(args.streams)))
        wall, cpu = time.monotonic() - began, cpu_seconds(up.router_pid) - before
    finally:
        for _, writer in connections:
            writer.close()
    failures = [stream.error for stream in streams if stream.error]
    tokens = sum(stream.tokens for stream in streams)
    first = [stream.first_token for stream in streams if stream.first_token is not None] or [0.0]
    return {
        "streams": args.streams, "failures": len(failures),
        "first_failure": (failures or [None])[0],
        "seconds": round(wall, 3), "tokens": tokens, "tokens_per_second": round(tokens / wall, 1),
        "ttft_p50_ms": round(1e3 * percentile(first, 0.5), 1),
        "ttft_p99_ms": round(1e3 * percentile(first, 0.99), 1),
        "router_cpu_seconds": round(cpu, 2),
        "router_cpu_ms_per_1000_tokens": round(1e6 * cpu / max(tokens, 1), 2),
    }


# ---- latency ----

# The beginning of a thought of the demo model: what comes next is text, not an end.
LATENCY_PROMPT = "48+37-19+43\n48+37:\n48+30="
LATENCY_TOKENS = 4


def grpc_callers(up):
    """(ask the worker, ask the router): each returns a request's seconds to its first ids."""
    try:
        import grpc  # pylint: disable=import-outside-toplevel

        sys.path.insert(0, str(ROOT))
        inference, inference_stubs = grpc.protos_and_services("proto/conclave/v1/inference.proto")
        worker, worker_stubs = grpc.protos_and_services("proto/conclave/v1/worker.proto")
    except (ImportError, NotImplementedError):
        sys.exit("http_load: the latency part needs grpcio-tools (pip install grpcio-tools), or "
                 "--latency_requests 0")
    ask_router = inference_stubs.InferenceStub(grpc.insecure_channel(up.router))
    ask_worker = worker_stubs.WorkerStub(grpc.insecure_channel(up.worker))
    ids = ask_router.Tokenize(inference.TokenizeRequest(text=LATENCY_PROMPT)).ids

    def first_ids(call, ids_of):
        began, first = time.monotonic(), None
        for event in call:
            if first is None and ids_of(event):
                first = time.monotonic() - began
        return first

    def of_worker(number):
        request = worker.TokenRequest(request_id=f"load-{number}", prompt_ids=ids,
                                      max_tokens=LATENCY_TOKENS)
        return first_ids(ask_worker.Generate(request), lambda event: event.ids)

    def of_router(_):
        request = inference.GenerateRequest(max_tokens=LATENCY_TOKENS)
        request.token_ids.ids.extend(ids)
        request.sampling.temperature = 0
        return first_ids(ask_router.Generate(request), lambda event: event.delta.ids)

    return of_worker, of_router


def latency(args, up):
    of_worker, of_router = grpc_callers(up)
    host, port = up.url.removeprefix("http://").rsplit(":", 1)
    loop = asyncio.new_event_loop()
    connection = loop.run_until_complete(asyncio.open_connection(host, int(port)))
    body = {"prompt": LATENCY_PROMPT, "temperature": 0, "max_tokens": LATENCY_TOKENS}

    def of_http(_):
        stream = loop.run_until_complete(ask(connection, "/v1/completions", body))
        if stream.error:
            sys.exit(f"http_load: {stream.error}")
        return stream.first_token

    callers = {"worker_grpc": of_worker, "router_grpc": of_router, "router_http": of_http}
    seconds = collections.defaultdict(list)
    warm_up = 10  # connections and caches
    for number in range(warm_up + args.latency_requests):
        for name, caller in callers.items():
            taken = caller(number)
            if number >= warm_up:
                seconds[name].append(taken)
    connection[1].close()
    loop.close()
    result = {}
    for name, values in seconds.items():
        for label, share in (("p50", 0.5), ("p99", 0.99)):
            milliseconds = 1e3 * percentile(values, share)
            result[f"{name}_ttft_{label}_ms"] = round(milliseconds, 3)
            if name != "worker_grpc":
                result[f"{name}_added_{label}_ms"] = round(
                    milliseconds - 1e3 * percentile(seconds["worker_grpc"], share), 3)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build/release/bin")
    parser.add_argument("--model", type=pathlib.Path, default=ROOT / "models/demo")
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--max_tokens", type=int, default=128)
    parser.add_argument("--deadline", type=float, default=300, help="of one stream, in seconds")
    parser.add_argument("--latency_requests", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    # A descriptor for each stream, here and, inherited, in the router.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with cluster(args) as up:
        urllib.request.urlopen(f"{up.url}/health", timeout=10).close()
        result = asyncio.run(load(args, up))
        if args.latency_requests > 0:
            result.update(latency(args, up))
    if args.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:32} {value}")
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
