"""What the pages for operators and newcomers say, held against the programs: flags, variables,
figures, files, panels and links. A page that names what is not there fails."""
import json
import os
import pathlib
import re
import subprocess
import unittest

from programs import BIN_DIR, conclave, program, variables

SOURCE_DIR = pathlib.Path(os.environ["CONCLAVE_SOURCE_DIR"])
OPERATIONS = (SOURCE_DIR / "docs" / "operations.md").read_text()
PAGES = {path.relative_to(SOURCE_DIR): path.read_text()
         for path in [SOURCE_DIR / "README.md", *sorted((SOURCE_DIR / "docs").glob("*.md"))]}
SERVERS = ["conclave-router", "conclave-worker", "conclave-expert-shard"]
COMMANDS = ["up", "chat", "generate", "status", "bench", "plan", "score", "synth", "tokenize",
            "render"]
# Flags of other programs that the pages name: kubectl, systemctl, docker, ./dev.
FOREIGN = {"--replicas", "--now", "--build", "--no-install", "--preset"}


def help_text():
    texts = [program(name, "--help")[1] for name in SERVERS]
    texts += [conclave(command, "--help")[1] for command in COMMANDS]
    return "\n".join(texts)


def anchor(heading):
    """As GitHub makes it: lower case, spaces to dashes, the rest of the punctuation gone."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


class PagesTest(unittest.TestCase):
    def test_links_lead_somewhere(self):
        for page, text in PAGES.items():
            for target in re.findall(r"\]\(([^)\s]+)\)", text):
                if target.startswith("http"):
                    continue
                path, _, fragment = target.partition("#")
                file = (SOURCE_DIR / page).parent / path if path else SOURCE_DIR / page
                with self.subTest(f"{page}: {target}"):
                    self.assertTrue(file.exists())
                    if fragment:
                        headings = re.findall(r"(?m)^#+ (.*)$", file.read_text())
                        self.assertIn(fragment, [anchor(heading) for heading in headings])

    def test_commands_there_are(self):
        """Where one is written to be typed: in backticks, or indented."""
        named = set()
        for text in PAGES.values():
            named.update(re.findall(r"(?m)(?:`|^    (?:\S*/)?)conclave ([a-z]+)", text))
        self.assertGreater(len(named), 5)
        self.assertLessEqual(named, set(COMMANDS))


class OperationsTest(unittest.TestCase):
    def test_flags_there_are(self):
        known = set(re.findall(r"--\w+", help_text())) | FOREIGN
        for page, text in PAGES.items():
            if page.name in ("performance.md", "gpu.md"):
                continue  # of scripts, tests and nvcc, too
            named = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", text))
            self.assertLessEqual(named, known, page)

    def test_variables_there_are(self):
        known = set().union(*(variables(name) for name in SERVERS))
        named = set(re.findall(r"CONCLAVE_[A-Z_]*[A-Z](?![A-Z_.])", OPERATIONS))
        self.assertGreater(len(named), 1)
        self.assertLessEqual(named - {"CONCLAVE_WORKER_MAX_RUNING"}, known)

    def test_the_error_of_the_page_is_the_error(self):
        line, said = re.search(r"    \$ (CONCLAVE_.*)\n    (conclave-worker: .*)\n",
                               OPERATIONS).groups()
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False,
                              env={"PATH": f"{BIN_DIR}:{os.environ['PATH']}"})
        self.assertEqual((done.returncode, done.stdout, done.stderr), (2, "", said + "\n"))

    def test_sizes_are_the_planners(self):
        """Weights to the GB, KV to the KiB."""
        rows = re.findall(r"\| (Qwen3-\S+) \| (\d+) GB \| (\d+) GB \| (\d+) KiB \|", OPERATIONS)
        self.assertEqual(len(rows), 2)
        for model, worker_gb, experts_gb, kv_kib in rows:
            code, out, err = conclave("plan", "--config", model, "--dtype", "bf16", "--cpu",
                                      "--hosts", 8, "--host_memory_gib", 256,
                                      "--host_bandwidth_gbs", 200, "--json")
            self.assertEqual(code, 0, err)
            plan = json.loads(out)
            card = plan["cards"][0]
            worker = card["attention_bytes"] + card["other_weight_bytes"]
            experts = sum(card["expert_bytes"] for card in plan["cards"])
            with self.subTest(model):
                self.assertEqual(round(worker / 1e9), int(worker_gb))
                self.assertEqual(round(experts / 1e9), int(experts_gb))
                self.assertEqual(plan["kv_bytes_per_token"], int(kv_kib) * 1024)

    def test_the_planners_command_runs(self):
        (line,) = re.findall(r"(?m)^    conclave (plan .*)$", OPERATIONS)
        code, out, err = conclave(*line.split())
        self.assertEqual(code, 0, err)
        self.assertIn("start it", out)
        self.assertIn("if a host is lost", out)

    def test_ports_are_those_of_deploy(self):
        for name, env in (("router", "router"), ("worker", "worker"),
                          ("expert shard", "expert-shard")):
            row = re.search(rf"\| {name} \| (\d+) \| (\d*) *\| (\d+) \|",
                            OPERATIONS).groups()
            for path in (SOURCE_DIR / "deploy").rglob(f"{env}.env"):
                found = re.findall(r"_LISTEN=0\.0\.0\.0:(\d+)", path.read_text())
                self.assertEqual(sorted(set(found)), sorted({port for port in row if port}), path)

    def test_drains_last_as_the_page_says(self):
        default, deployed, grace = re.search(
            r"`--drain_seconds` is (\d+) unless set, and (\d+) in\s+`deploy/`, whose grace periods "
            r"are (\d+) s", OPERATIONS).groups()
        for name in SERVERS:
            self.assertRegex(program(name, "--help")[1],
                             rf"--drain_seconds SECONDS\S*.*={default} ")
        for path in (SOURCE_DIR / "deploy").rglob("*.env"):
            self.assertIn(f"_DRAIN_SECONDS={deployed}\n", path.read_text(), path)
        for path in (SOURCE_DIR / "deploy" / "kubernetes").rglob("*.yaml"):
            for found in re.findall(r"terminationGracePeriodSeconds: (\d+)", path.read_text()):
                self.assertEqual(found, grace, path)
        for path in (SOURCE_DIR / "deploy" / "systemd").glob("*.service"):
            self.assertIn(f"TimeoutStopSec={grace}s", path.read_text())

    def test_panels_there_are(self):
        titles = set()
        for path in (SOURCE_DIR / "deploy" / "grafana" / "dashboards").glob("*.json"):
            titles |= {panel["title"] for panel in json.loads(path.read_text())["panels"]}
        words = {"Page", "Ticket", "Serving", "Thinking and experts", "burns", "Not ready", "Down",
                 "Loaded another model"}
        named = {re.sub(r"\s+", " ", name).rstrip(".")
                 for name in re.findall(r"(?<!\*)\*([A-Z][^*]+?)\*(?!\*)", OPERATIONS)}
        self.assertIn("Preempted", named)
        self.assertLessEqual(named - words, titles)

    def test_files_there_are(self):
        for name in re.findall(r"`?(deploy/[\w./-]*\w|tools/\w+\.py)", OPERATIONS):
            self.assertTrue((SOURCE_DIR / name).exists(), name)
        overlays = re.findall(r"(?m)^\| `([\w-]+)` \|", OPERATIONS)
        found = [path.name for path in (SOURCE_DIR / "deploy/kubernetes/overlays").iterdir()]
        self.assertEqual(sorted(overlays), sorted(found))

    def test_log_fields_are_those_logged(self):
        source = "".join((SOURCE_DIR / path).read_text() for path in (
            "router/inflight_request.cc", "worker/token_stream.cc",
            "expert_shard/forward_stream.cc"))
        logged = set(re.findall(r'\{"(\w+)", ', source))
        table = "".join(re.findall(r"(?m)^\| (?:router|worker|expert shard) \| `request .*$",
                                   OPERATIONS))
        named = set(re.findall(r"\b[a-z_]+\b", " ".join(re.findall(r"`([^`]+)`", table))))
        self.assertEqual(named - {"request", "finished", "announced"}, logged)


if __name__ == "__main__":
    unittest.main()
