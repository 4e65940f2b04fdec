"""Hosts on one machine: network namespaces with an address each, names in a hosts file, and links
between them that delay what they carry.

The links are veth pairs on a bridge, and the kernel delays (tc netem). Where it has not all of these,
the links are TUN devices and a thread of this process is the wire. Where it has no TUN either, no
network is made, and the reason names all that is missing."""
import ctypes
import fcntl
import heapq
import os
import pathlib
import select
import shutil
import struct
import subprocess
import tempfile
import threading
import time

from harness import Program

CLONE_NEWNET = 0x40000000
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
PACKET_BYTES = 1500
# Runs a program with another /etc/hosts: `ip netns exec` has given it a mount namespace of its own.
WITH_HOSTS = 'mount --bind "$0" /etc/hosts && exec "$@"'


class Missing(Exception):
    """What of the kernel, or of the tools, keeps a network from being made."""


def attempt(*words):
    """Why a command failed; None if it did not."""
    if shutil.which(words[0]) is None:
        return f"no {words[0]} command (Debian's package iproute2)"
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True,
                          check=False)
    if done.returncode == 0:
        return None
    said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return said[0].strip()


def ip(*words):
    reason = attempt("ip", *words)
    if reason is not None:
        raise OSError(f"ip {' '.join(map(str, words))}: {reason}")


def why_not():
    """Why no network of hosts can be made here, not even without a delay; None if it can."""
    probe = f"cvprobe{os.getpid()}"
    reason = attempt("ip", "netns", "add", probe)
    if reason is not None:
        return f"network namespaces: {reason}"
    try:
        reason = attempt("ip", "netns", "exec", probe, "true")
        if reason is not None:
            return f"programs in a namespace: {reason}"
    finally:
        attempt("ip", "netns", "del", probe)
    try:
        with tempfile.TemporaryDirectory(prefix="conclave_test_") as folder:
            Hosts(folder, ["a", "b"], 0).close()
    except Missing as missing:
        return str(missing)
    return None


class Hosts:
    """names -> addresses 10.77.0.1, .2, ... Every packet is `delay` seconds on its way. `wire` says
    how. Raises Missing where the kernel lacks what that takes."""

    def __init__(self, folder, names, delay):
        self.names = list(names)
        self.delay = delay
        self.prefix = f"cv{os.getpid() % 100000}"
        self.switch = None
        self.made = []
        self.hosts_file = pathlib.Path(folder, "hosts")
        self.hosts_file.write_text("127.0.0.1 localhost\n" + "".join(
            f"{self.address(name)} {name}.conclave.test\n" for name in self.names))
        try:
            self.build()
        except BaseException:
            self.close()
            raise

    def namespace(self, name):
        return f"{self.prefix}{name}"

    def address(self, name):
        return f"10.77.0.{self.names.index(name) + 1}"

    def add_namespace(self, name):
        ip("netns", "add", self.namespace(name))
        self.made.append(self.namespace(name))
        ip("-n", self.namespace(name), "link", "set", "lo", "up")

    def build(self):
        for name in self.names:
            self.add_namespace(name)
        lacking = self.connect_by_veth() or self.delay_by_netem()
        if lacking is None:
            self.wire = "veth and netem" if self.delay > 0 else "veth"
            return
        for name in self.names:  # those that there are
            attempt("ip", "-n", self.namespace(name), "link", "del", "eth0")
        try:
            self.switch = Switch(self)
        except OSError as error:
            raise Missing(f"{lacking}; TUN: {error}") from error
        self.wire = f"TUN, carried by this process ({lacking})"

    def connect_by_veth(self):
        """None, or what the kernel lacks for it."""
        self.add_namespace("switch")
        inside = self.namespace("switch")
        reason = attempt("ip", "-n", inside, "link", "add", "br0", "type", "bridge")
        if reason is not None:
            return f"bridge: {reason}"
        ip("-n", inside, "link", "set", "br0", "up")
        for i, name in enumerate(self.names):
            reason = attempt("ip", "-n", inside, "link", "add", f"port{i}", "type", "veth", "peer",
                             "name", "eth0", "netns", self.namespace(name))
            if reason is not None:
                return f"veth: {reason}"
            ip("-n", inside, "link", "set", f"port{i}", "master", "br0", "up")
            self.configure(name, "eth0")
        return None

    def delay_by_netem(self):
        """None, or what the kernel lacks for it. What leaves a host is held up, so that a round trip
        has the delay twice."""
        for name in self.names if self.delay > 0 else []:
            reason = attempt("tc", "-n", self.namespace(name), "qdisc", "add", "dev", "eth0",
                             "root", "netem", "delay", f"{round(self.delay * 1e6)}us")
            if reason is not None:
                return f"netem: {reason}"
        return None

    def configure(self, name, device):
        ip("-n", self.namespace(name), "addr", "add", f"{self.address(name)}/24", "dev", device)
        ip("-n", self.namespace(name), "link", "set", device, "up")

    def argv(self, name, argv):
        return ["ip", "netns", "exec", self.namespace(name), "sh", "-c", WITH_HOSTS,
                self.hosts_file, *argv]

    def start(self, name, argv):
        return Program(self.argv(name, argv))

    def run(self, name, argv, seconds):
        return subprocess.run([str(word) for word in self.argv(name, argv)], capture_output=True,
                              text=True, timeout=seconds, check=False)

    def close(self):
        """May be called twice."""
        switch, self.switch = self.switch, None
        if switch is not None:
            switch.close()
        while self.made:
            attempt("ip", "netns", "del", self.made.pop())


class Switch:
    """The wire between TUN devices: each packet goes to the host of its address, `delay` later."""

    def __init__(self, hosts):
        self.delay = hosts.delay
        self.devices = {}  # packed address -> file descriptor
        try:
            for name in hosts.names:
                packed = bytes(int(part) for part in hosts.address(name).split("."))
                self.devices[packed] = self.open_device(hosts.namespace(name))
                hosts.configure(name, "tun0")
        except OSError:
            for fd in self.devices.values():
                os.close(fd)
            raise
        self.stop_read, self.stop_write = os.pipe()
        self.thread = threading.Thread(target=self.carry, daemon=True)
        self.thread.start()

    @staticmethod
    def open_device(namespace):
        """A TUN device lives in the namespace of the thread that makes it."""
        made = []

        def make():
            try:
                libc = ctypes.CDLL(None, use_errno=True)
                with open(f"/run/netns/{namespace}", "rb") as target:
                    if libc.setns(target.fileno(), CLONE_NEWNET) != 0:
                        raise OSError(ctypes.get_errno(), "setns")
                fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
                made.append(fd)
                fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", b"tun0", IFF_TUN | IFF_NO_PI))
            except OSError as error:
                made.append(error)

        thread = threading.Thread(target=make)  # whose namespace ends with it
        thread.start()
        thread.join()
        if not isinstance(made[-1], OSError):
            return made[-1]
        if len(made) == 2:
            os.close(made[0])
        raise made[-1]

    def carry(self):
        on_the_way, order = [], 0  # heap of (when it arrives, order, device, packet)
        while True:
            patience = None
            if on_the_way:
                patience = max(0.0, on_the_way[0][0] - time.monotonic())
            readable, _, _ = select.select([self.stop_read, *self.devices.values()], [], [],
                                           patience)
            if self.stop_read in readable:
                return
            now = time.monotonic()
            for fd in readable:
                try:
                    packet = os.read(fd, PACKET_BYTES)
                except BlockingIOError:
                    continue
                to = self.devices.get(packet[16:20]) if packet[0] >> 4 == 4 else None
                if to is not None:
                    order += 1
                    heapq.heappush(on_the_way, (now + self.delay, order, to, packet))
            while on_the_way and on_the_way[0][0] <= time.monotonic():
                _, _, to, packet = heapq.heappop(on_the_way)
                try:
                    os.write(to, packet)
                except OSError:
                    pass  # a full queue drops it, as a switch would

    def close(self):
        os.write(self.stop_write, b"x")
        self.thread.join()
        for fd in (*self.devices.values(), self.stop_read, self.stop_write):
            os.close(fd)
