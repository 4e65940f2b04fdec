"""tools/flame_graph.py on the output of `perf script`."""
import pathlib
import subprocess
import sys
import unittest
import xml.etree.ElementTree

TOOL = pathlib.Path(__file__).resolve().parents[2] / "tools" / "flame_graph.py"
SAMPLES = """conclave-worker  100/101  5.000001:  5000000 cpu-clock:pppH:
\t    55d0 conclave::Linear(conclave::LinearArgs const&)+0x1c (/bin/conclave-worker)
\t    55c0 conclave::Decoder::Forward()+0x8 (/bin/conclave-worker)

conclave-worker  100/101  5.010001:  5000000 cpu-clock:pppH:
\t    55d4 conclave::Linear(conclave::LinearArgs const&)+0x20 (/bin/conclave-worker)
\t    55c0 conclave::Decoder::Forward()+0x8 (/bin/conclave-worker)

grpc_event  100/102  5.020001:  5000000 cpu-clock:pppH:
\t    7f00 [unknown] (/lib/libgrpc.so.29)

conclave-worker  100/101  5.030001:  5000000 cpu-clock:pppH:
\t    55c0 conclave::Decoder::Forward()+0x8 (/bin/conclave-worker)
"""


def run(text):
    return subprocess.run([sys.executable, TOOL], input=text, capture_output=True, text=True,
                          check=False)


class FlameGraphTest(unittest.TestCase):
    def test_widths_are_shares_of_samples(self):
        done = run(SAMPLES)
        self.assertEqual(done.returncode, 0, done.stderr)
        svg = xml.etree.ElementTree.fromstring(done.stdout)
        space = "{http://www.w3.org/2000/svg}"
        boxes = {group.find(space + "title").text: group.find(space + "rect").attrib
                 for group in svg.iter(space + "g")}
        self.assertEqual(set(boxes), {
            "all samples: 4 samples, 100.0 %", "conclave-worker: 3 samples, 75.0 %",
            "conclave::Decoder::Forward(): 3 samples, 75.0 %",
            "conclave::Linear(conclave::LinearArgs const&): 2 samples, 50.0 %",
            "grpc_event: 1 samples, 25.0 %", "libgrpc.so.29: 1 samples, 25.0 %"})
        linear = boxes["conclave::Linear(conclave::LinearArgs const&): 2 samples, 50.0 %"]
        forward = boxes["conclave::Decoder::Forward(): 3 samples, 75.0 %"]
        self.assertEqual(float(linear["width"]), 600)
        self.assertLess(float(linear["y"]), float(forward["y"]), "what is called stands above")

    def test_nothing_is_an_error(self):
        done = run("")
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("no samples", done.stderr)


if __name__ == "__main__":
    unittest.main()
