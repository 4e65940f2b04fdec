"""Hosts on one machine: network namespaces with an address each, names in a hosts file, and links
between them that delay what they carry.

The links are veth pairs on a bridge. The kernel delays (tc netem) where it can; where its netem is
missing, the links are TUN devices and a thread of this process is the wire."""
import ctypes
import fcntl
import heapq
import os
import pathlib
import select
import shutil
import struct
import subprocess
import threading
import time

from harness import Program

CLONE_NEWNET = 0x40000000
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
PACKET_BYTES = 1500
# Runs a program with another /etc/hosts: `ip netns exec` has given it a mount namespace of its own.
WITH_HOSTS = 'mount --bind "$0" /etc/hosts && exec "$@"'


def ip(*words):
    subprocess.run(["ip", *map(str, words)], check=True, capture_output=True, text=True)


def why_not():
    """Why namespaces cannot be made here; None if they can."""
    if shutil.which("ip") is None:
        return "no ip command here (Debian's package iproute2)"
    probe = f"cvprobe{os.getpid()}"
    done = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True,
                          check=False)
    if done.returncode != 0:
        return f"network namespaces are not allowed here: {done.stderr.strip()}"
    done = subprocess.run(["ip", "netns", "exec", probe, "true"], capture_output=True, text=True,
                          check=False)
    subprocess.run(["ip", "netns", "del", probe], check=False)
    if done.returncode != 0:
        return f"programs cannot be run in a namespace here: {done.stderr.strip()}"
    return None


class Hosts:
    """names -> addresses 10.77.0.1, .2, ... Every packet is `delay` seconds on its way."""

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
        self.connect_by_veth()
        self.wire = "veth"
        if self.delay > 0:
            self.wire = "veth and netem"
            if not all(self.add_netem(name) for name in self.names):
                for name in self.names:
                    ip("-n", self.namespace(name), "link", "del", "eth0")
                self.switch = Switch(self)
                self.wire = "TUN, delayed by this process (the kernel has no netem)"

    def connect_by_veth(self):
        self.add_namespace("switch")
        inside = self.namespace("switch")
        ip("-n", inside, "link", "add", "br0", "type", "bridge")
        ip("-n", inside, "link", "set", "br0", "up")
        for i, name in enumerate(self.names):
            ip("-n", inside, "link", "add", f"port{i}", "type", "veth", "peer", "name", "eth0",
               "netns", self.namespace(name))
            ip("-n", inside, "link", "set", f"port{i}", "master", "br0", "up")
            self.configure(name, "eth0")

    def configure(self, name, device):
        ip("-n", self.namespace(name), "addr", "add", f"{self.address(name)}/24", "dev", device)
        ip("-n", self.namespace(name), "link", "set", device, "up")

    def add_netem(self, name):
        if shutil.which("tc") is None:
            return False
        done = subprocess.run(
            ["tc", "-n", self.namespace(name), "qdisc", "add", "dev", "eth0", "root", "netem",
             "delay", f"{round(self.delay * 1e6)}us"], capture_output=True, check=False)
        return done.returncode == 0

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
            subprocess.run(["ip", "netns", "del", self.made.pop()], capture_output=True,
                           check=False)


class Switch:
    """The wire between TUN devices: each packet goes to the host of its address, `delay` later."""

    def __init__(self, hosts):
        self.delay = hosts.delay
        self.devices = {}  # packed address -> file descriptor
        self.stop_read, self.stop_write = os.pipe()
        for name in hosts.names:
            fd = self.open_device(hosts.namespace(name))
            hosts.configure(name, "tun0")
            self.devices[bytes(int(part) for part in hosts.address(name).split("."))] = fd
        self.thread = threading.Thread(target=self.carry, daemon=True)
        self.thread.start()

    @staticmethod
    def open_device(namespace):
        """A TUN device lives in the namespace of the thread that makes it."""
        made = []

        def make():
            libc = ctypes.CDLL(None, use_errno=True)
            with open(f"/run/netns/{namespace}", "rb") as target:
                if libc.setns(target.fileno(), CLONE_NEWNET) != 0:
                    return
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", b"tun0", IFF_TUN | IFF_NO_PI))
            made.append(fd)

        thread = threading.Thread(target=make)  # whose namespace ends with it
        thread.start()
        thread.join()
        if not made:
            raise OSError(f"no TUN device in {namespace}")
        return made[0]

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
