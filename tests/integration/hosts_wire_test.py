"""Which wire hosts.py takes, and what it asks the kernel for: with `ip` and `tc` of the test, which
record how they are called and fail where they are told to. Needs no right and no kernel's help."""
import os
import pathlib
import unittest
from unittest import mock

import harness
import hosts

NAMES = ["router", "worker"]
FAKE = """#!/bin/sh
echo "$(basename "$0") $*" >> "$FAKE_LOG"
case "$*" in
  ${FAKE_FAILS:-nothing})
    echo "Error: Unknown device type." >&2
    exit 2 ;;
esac
"""


class HostsWireTest(harness.IntegrationTest):
    def setUp(self):
        super().setUp()
        self.log = self.dir / "calls"
        self.log.touch()
        self.environment = {"PATH": f"{self.dir}:{os.environ['PATH']}", "FAKE_LOG": str(self.log)}
        for name in ("ip", "tc"):
            self.put(name)

    def put(self, name):
        path = self.dir / name
        path.write_text(FAKE)
        path.chmod(0o755)

    def make(self, delay, fails="", tun=True):
        """The network, with a stand-in for the TUN devices. `fails`: a shell pattern of arguments."""
        switch = mock.Mock(side_effect=None if tun else OSError("No such file: /dev/net/tun"))
        with mock.patch.dict(os.environ, {**self.environment, "FAKE_FAILS": fails}), \
                mock.patch.object(hosts, "Switch", switch):
            network = hosts.Hosts(self.dir, NAMES, delay)
            network.close()
        self.assertEqual(switch.called, network.wire.startswith("TUN"))
        return network

    def calls(self, pattern):
        return [line for line in self.log.read_text().splitlines() if pattern in line]

    def test_without_delay_the_kernel_carries(self):
        self.assertEqual(self.make(0).wire, "veth")
        self.assertEqual(self.calls("tc "), [])
        self.assertEqual(len(self.calls("type bridge")), 1)
        self.assertEqual(len(self.calls("type veth")), len(NAMES))

    def test_netem_delays_what_leaves_each_host(self):
        network = self.make(0.0025)
        self.assertEqual(network.wire, "veth and netem")
        self.assertEqual(self.calls("tc "), [
            f"tc -n {network.namespace(name)} qdisc add dev eth0 root netem delay 2500us"
            for name in NAMES])

    def test_without_netem_this_process_delays(self):
        network = self.make(0.001, fails="*netem*")
        self.assertIn("netem: Error: Unknown device type.", network.wire)
        self.assertEqual(len(self.calls("link del eth0")), len(NAMES))

    def test_without_bridge_or_veth_this_process_carries(self):
        for kind in ("bridge", "veth"):
            for delay in (0, 0.001):
                wire = self.make(delay, fails=f"*type?{kind}*").wire
                self.assertIn(f"{kind}: Error: Unknown device type.", wire)

    def test_what_is_missing_is_named(self):
        with self.assertRaisesRegex(hosts.Missing, "^bridge: Error.*; TUN: .*/dev/net/tun"):
            self.make(0, fails="*type?bridge*", tun=False)
        with self.assertRaisesRegex(hosts.Missing, "^netem: Error.*; TUN: "):
            self.make(0.001, fails="*netem*", tun=False)
        # Whatever was made is taken away again.
        self.assertEqual(len(self.calls("netns add")), len(self.calls("netns del")))

    def test_why_not_names_it_too(self):
        def why_not(fails):
            with mock.patch.dict(os.environ, {**self.environment, "FAKE_FAILS": fails}), \
                    mock.patch.object(hosts, "Switch", side_effect=OSError("no TUN")):
                return hosts.why_not()
        self.assertIsNone(why_not(""))
        self.assertIn("network namespaces: Error", why_not("netns?add*"))
        self.assertIn("programs in a namespace: Error", why_not("netns?exec*"))
        self.assertIn("veth: Error", why_not("*type?veth*"))
        with mock.patch.dict(os.environ, {"PATH": str(pathlib.Path("/nowhere"))}):
            self.assertIn("no ip command", hosts.why_not())


if __name__ == "__main__":
    unittest.main()
