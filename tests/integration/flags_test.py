"""How the four servers are configured: where a flag may come from and which place wins, one error
that lists all that is wrong, and a --help that tells it all. No model is loaded."""
import os
import re
import subprocess
import tempfile
import unittest

from harness import BIN_DIR, DEADLINE_SECONDS

PROGRAMS = {"conclave-router": [], "conclave-worker": [], "conclave-expert-shard": [],
            "conclave": ["up"]}
PREFIXES = {"conclave-router": "CONCLAVE_ROUTER", "conclave-worker": "CONCLAVE_WORKER",
            "conclave-expert-shard": "CONCLAVE_EXPERT_SHARD", "conclave": "CONCLAVE_UP"}
# A flag of `up` is handed on to servers: where two have one of a name, they take the same values.
SHARED = ("--drain_seconds", "--cpu_isa", "--threads", "--kv_cache_tokens", "--micro_batch",
          "--shared_memory", "--log_format")


def run(program, *arguments, **variables):
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith("CONCLAVE_")}
    done = subprocess.run([BIN_DIR / program, *PROGRAMS[program], *map(str, arguments)],
                          capture_output=True, text=True, check=False, timeout=DEADLINE_SECONDS,
                          env={**environment, **variables})
    return done.returncode, done.stdout, done.stderr


def flags(program):
    """{flag: (what stands beside it, its explanation)} of --help."""
    _, text, _ = run(program, "--help")
    text = text.split("Usage: ")[1]
    found = re.findall(r"(?m)^  (--\w+)(.*)\n((?: {20,}.*\n)*)", text)
    return {flag: (beside, " ".join(lines.split())) for flag, beside, lines in found
            if flag != "--help_all"}


class FlagsTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="conclave_test_")
        self.addCleanup(folder.cleanup)
        self.file = os.path.join(folder.name, "flags.toml")

    def write(self, text):
        with open(self.file, "w", encoding="utf-8") as file:
            file.write(text)

    def wrong(self, program, arguments, words, **variables):
        """Exit code 2, nothing on standard output, and one line that says all of `words`."""
        code, out, err = run(program, *arguments, **variables)
        self.assertEqual((code, out, err.count("\n")), (2, "", 1), err)
        self.assertTrue(err.startswith(f"{program}: "), err)
        for word in words:
            self.assertIn(word, err)
        self.assertLess(len(err), 3000)

    def test_router_lists_all_that_is_wrong(self):
        self.write('max_inflight = [1, 2]\nhttp_threads = 1.5\nunknown = true\n'
                   '[part]\nlisten = "x"\n')
        self.wrong("conclave-router", [
            "--config", self.file, "--workers", "a:1,a:1", "--chat_template", "pirate",
            "--budget_ceilings", "/none.json", "--drain_seconds", "soon", "--default_mode", "maybe",
            "--listen", "here", "--http_listen", "there:99999", "--log_level", "loud", "--bogus"],
            ["--model is required", "sets unknown", "sets part.listen", "--http_threads: Value 1.5",
             "--max_inflight: ", "--chat_template: pirate", "/none.json", "--drain_seconds: Value",
             "--default_mode: maybe", '--listen: address is "here"', '"there:99999"',
             "names a:1 twice", 'log_level is "loud"', "unknown: --bogus",
             "CONCLAVE_ROUTER_MODLE is set"], CONCLAVE_ROUTER_MODLE="/m")

    def test_worker_lists_all_that_is_wrong(self):
        self.write('max_runing = 3\nthreads = "many"\nprefix_cache = "perhaps"\n'
                   'shards = ["a:1", "dns:///x:99999"]\n')
        self.wrong("conclave-worker", [
            "--config", self.file, "--metrics_listen", "here", "--weight_dtype", "fp9", "--device",
            "tpu", "--load_format", "magic", "--gpu_memory_utilization", "7", "--local_experts",
            "5-2", "--cpus", "0,x", "--numa_node", "-4", "--shard_wait_seconds", "-1",
            "--micro_batch", "maybe", "--cpu_isa", "sse", "--expert_transport", "nccl",
            "--shared_memory", "off"],
            ["--model is required", "sets max_runing", "--threads: Value many", "--prefix_cache",
             "dns:///x:99999", '"here"', "--weight_dtype: fp9", '--device: device is "tpu"',
             "--load_format: magic", "--gpu_memory_utilization: Value 7", '"5-2"', '"x"',
             "--numa_node: Value -4", "--shard_wait_seconds: Value -1", "--micro_batch: maybe",
             '"sse"', "--expert_transport is nccl and --shared_memory is off",
             "--kv_cache_tokens: Value -5"], CONCLAVE_WORKER_KV_CACHE_TOKENS="-5")

    def test_shard_lists_all_that_is_wrong(self):
        self.wrong("conclave-expert-shard", [
            "--experts", "3", "--shard_index", "5", "--num_shards", "2", "--drain_seconds", "-1",
            "--threads", "5000", "--weight_dtype", "x", "--device", "y", "--cpus", "a",
            "--tls_key_file", "k"],
            ["--model is required", "either --experts or both", "--shard_index is 5, want 0..1",
             "--drain_seconds: Value -1", "--threads: Value 5000", "--weight_dtype: x",
             '--device: device is "y"', '"a"', "both --tls_cert_file and --tls_key_file"])

    def test_up_lists_all_that_is_wrong(self):
        self.write("workers = 0\nshards = -1\nfoo = 2\n")
        self.wrong("conclave", [
            "--config", self.file, "--grpc_port", "99999", "--log_level", "loud",
            "--chat_template", "pirate", "--weight_dtype", "q", "--cpu_isa", "sse", "--bogus"],
            ["--model is required", "--workers: Value 0", "--shards: Value -1", "sets foo",
             "--grpc_port: Value 99999", "--log_level: loud", "--chat_template: pirate",
             "--weight_dtype: q", "--cpu_isa: sse", "unknown: --bogus", "CONCLAVE_UP_BOO is set"],
            CONCLAVE_UP_BOO="1")

    def test_the_line_wins_over_the_environment_over_the_file(self):
        """Each place gives a value that is refused, so that the error says whose was taken."""
        flag, field = "--drain_seconds", "drain_seconds"
        self.write(f"{field} = -3\n")
        for program, prefix in PREFIXES.items():
            with self.subTest(program):
                variable = {f"{prefix}_DRAIN_SECONDS": "-2"}
                for arguments, variables, taken in (
                        ([flag, "-1", "--config", self.file], variable, "-1"),
                        (["--config", self.file], variable, "-2"),
                        (["--config", self.file], {}, "-3"),
                        ([], {f"{prefix}_CONFIG": self.file}, "-3")):
                    self.wrong(program, arguments, [f"{flag}: Value {taken} not in range"],
                               **variables)

    def test_help_tells_it_all(self):
        for program, prefix in PREFIXES.items():
            _, text, _ = run(program, "--help")
            for group in ("Model:", "Network:", "Compute:", "Load:", "Logs:"):
                if program == "conclave-router" and group == "Compute:":
                    continue  # it computes nothing
                if program == "conclave" and group == "Load:":
                    continue
                self.assertIn(f"\n{group}\n", text, program)
            for flag, (beside, explanation) in flags(program).items():
                with self.subTest(f"{program} {flag}"):
                    self.assertIn(f"(Env:{prefix}_{flag[2:].upper()})", beside)
                    self.assertTrue(explanation)
                    if flag.endswith(("_seconds", "_tokens")) or flag == "--threads":
                        self.assertRegex(beside, r"^ (SECONDS|TOKENS|THREADS):")
            self.assertNotIn("NONNEGATIVE", text)

    def test_a_flag_of_two_programs_takes_the_same_values(self):
        kinds = {}
        for program in PROGRAMS:
            for flag, (beside, explanation) in flags(program).items():
                allowed = re.findall(r"in \[.*?\]|\{.*?\}", beside)
                if flag in SHARED and allowed:
                    kinds.setdefault(flag, {})[program] = allowed
        self.assertEqual(len(kinds["--drain_seconds"]), 4)
        for flag, allowed in kinds.items():
            self.assertEqual(len({str(value) for value in allowed.values()}), 1, (flag, allowed))


if __name__ == "__main__":
    unittest.main()
