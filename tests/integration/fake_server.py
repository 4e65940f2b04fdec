#!/usr/bin/env python3
"""Stands in for conclave-router, -worker and -expert-shard in the supervisor's tests: it binds its
ports, says so as they do, notes what happens to it in $FAKE_DIR/events, and stops on SIGTERM.

FAKE_FAIL, FAKE_SILENT, FAKE_STUBBORN name the program that ends at once with an error, never
becomes ready, or ignores SIGTERM. FAKE_FAIL_CODE is what the first one ends with, 1 unless set.
"""
import json
import os
import pathlib
import signal
import socket
import sys

PROGRAM = pathlib.Path(sys.argv[0]).name


def note(event):
    # One write of one line to a file opened for appending: the order is that of the writes.
    fd = os.open(os.path.join(os.environ["FAKE_DIR"], "events"),
                 os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(fd, (json.dumps([event, PROGRAM, os.getpid(), sys.argv[1:]]) + "\n").encode())
    os.close(fd)


def bind(flag):
    host, port = sys.argv[sys.argv.index(flag) + 1].rsplit(":", 1)
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((host, int(port)))
    server.listen()
    return server


def say(**event):
    print(json.dumps(event), flush=True)


def main():
    # Blocked from the start and taken by sigwait below: none is lost before we are ready for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    note("start")
    if os.environ.get("FAKE_FAIL") == PROGRAM:
        print("an earlier line", file=sys.stderr)
        print(f"{PROGRAM}: the weights are broken", file=sys.stderr)
        return int(os.environ.get("FAKE_FAIL_CODE", "1"))
    is_router = PROGRAM == "conclave-router"
    servers = [bind("--listen"), bind("--http_listen" if is_router else "--metrics_listen")]
    grpc, metrics = (f"127.0.0.1:{server.getsockname()[1]}" for server in servers)
    # The router has an API at the address of its metrics.
    http = {"http": metrics} if is_router else {}
    say(event="listening", grpc=grpc, **http, metrics=metrics)
    print(f"{PROGRAM} is loading", file=sys.stderr, flush=True)
    if os.environ.get("FAKE_SILENT") != PROGRAM:
        say(event="ready")
    while True:
        signal.sigwait({signal.SIGTERM})
        note("term")
        if os.environ.get("FAKE_STUBBORN") != PROGRAM:
            return 0


sys.exit(main())
