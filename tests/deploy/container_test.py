"""Dockerfile, compose file and systemd units, by the linters of each. Nothing is built or started:
no container engine and no systemd are needed here."""
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

import yaml

from programs import conclave, program, variables

SOURCE_DIR = pathlib.Path(os.environ["CONCLAVE_SOURCE_DIR"])
DOCKER = SOURCE_DIR / "deploy" / "docker"
SYSTEMD = SOURCE_DIR / "deploy" / "systemd"
PROMETHEUS = SOURCE_DIR / "deploy" / "prometheus"
PROGRAMS = ["conclave-router", "conclave-worker", "conclave-expert-shard"]


def run(*argv):
    done = subprocess.run([str(argument) for argument in argv], capture_output=True, text=True,
                          check=False)
    return done.returncode, done.stdout + done.stderr


def venv_program(name):
    return pathlib.Path(sys.executable).with_name(name)


class ContainerTest(unittest.TestCase):
    compose = yaml.safe_load((DOCKER / "compose.yml").read_text())

    def test_hadolint_has_no_complaint(self):
        code, said = run(venv_program("hadolint"), DOCKER / "Dockerfile")
        self.assertEqual((code, said), (0, ""))

    def test_images_run_without_rights_and_are_labelled(self):
        text = (DOCKER / "Dockerfile").read_text()
        stages = {re.match(r"\S+ AS (\S+)", stage)[1]: stage for stage in text.split("\nFROM ")[1:]}
        self.assertEqual(sorted(stages),
                         ["build", "build-cuda", "cpu", "cuda", "packages", "toolkit"])
        for name in ("cpu", "cuda"):
            self.assertIn("\nUSER 10001:10001\n", stages[name])
            self.assertIn("org.opencontainers.image.licenses", stages[name])

    def test_compose_fits_its_schema(self):
        code, said = run(venv_program("check-jsonschema"), "--builtin-schema",
                         "vendor.compose-spec", DOCKER / "compose.yml")
        self.assertEqual(code, 0, said)

    def test_compose_mounts_what_there_is(self):
        for service in self.compose["services"].values():
            for mount in service.get("volumes", []):
                source = mount.split(":")[0]
                if source.startswith("."):
                    self.assertTrue((DOCKER / source).exists(), source)

    def test_compose_sets_flags_there_are(self):
        for name, service in self.compose["services"].items():
            for program in PROGRAMS:
                if service.get("command") == [program]:
                    self.assertLessEqual(set(service["environment"]), variables(program), name)

    def test_commands_have_flags_there_are(self):
        """What a container runs by itself, and what asks it whether it is well. Flags are checked
        first, with status 2; then there is no such model, and nobody answers, status 1."""
        default = re.search(r"(?ms)^CMD (\[.*?\])$", (DOCKER / "Dockerfile").read_text())[1]
        commands = [json.loads(default.replace("\\\n", ""))]
        for service in self.compose["services"].values():
            if "healthcheck" in service:
                kind, *command = service["healthcheck"]["test"]
                self.assertEqual(kind, "CMD")
                commands.append(command)
        self.assertEqual(len(commands), 2)
        for program, *arguments in commands:
            self.assertEqual(program, "conclave")
            elsewhere = [re.sub(r":50050$", ":1", re.sub("^/opt", "/nowhere", argument))
                         for argument in arguments]
            code, _, said = conclave(*elsewhere)
            self.assertEqual(code, 1, said)

    def test_prometheus_scrapes_what_compose_starts(self):
        """Each address of the target files is a service that listens there; none is left out."""
        listening = set()
        for name, service in self.compose["services"].items():
            flags = service.get("environment", {})
            for flag, address in flags.items():
                if flag.endswith("METRICS_LISTEN") or flag.endswith("HTTP_LISTEN"):
                    listening.add(f"{name}:{address.rsplit(':', 1)[1]}")
        targets = set()
        for path in (PROMETHEUS / "targets").glob("*.yml"):
            for group in yaml.safe_load(path.read_text()):
                targets.update(group["targets"])
                self.assertEqual(sorted(group["labels"]), ["cluster", "model"])
        self.assertEqual(targets, listening)

    def test_peers_are_services(self):
        services = self.compose["services"]
        for name, flag in (("worker", "CONCLAVE_WORKER_SHARDS"),
                           ("router", "CONCLAVE_ROUTER_WORKERS")):
            for target in services[name]["environment"][flag].split(","):
                peer, port = re.fullmatch(r"dns:///([\w-]+):(\d+)", target).groups()
                (listen,) = [value for key, value in services[peer]["environment"].items()
                             if re.fullmatch(r"CONCLAVE_(WORKER|EXPERT_SHARD)_LISTEN", key)]
                self.assertEqual(listen, f"0.0.0.0:{port}")


class SystemdTest(unittest.TestCase):
    units = sorted(SYSTEMD.glob("*.service"))

    def test_there_is_a_unit_for_each_program(self):
        self.assertEqual([unit.stem for unit in self.units], sorted(PROGRAMS))

    def test_systemd_analyze_verify(self):
        if shutil.which("systemd-analyze") is None:
            self.skipTest("no systemd-analyze here")
        with tempfile.TemporaryDirectory(prefix="conclave_test_") as folder:
            for unit in self.units:
                # It wants the program to exist, which is at another place here.
                text = re.sub(r"(?m)^ExecStart=.*$", f"ExecStart={shutil.which('true')}",
                              unit.read_text())
                copy = pathlib.Path(folder, unit.name)
                copy.write_text(text)
                code, said = run("systemd-analyze", "verify", copy)
                self.assertEqual(code, 0, said)
                self.assertNotIn("Unknown", said)

    def test_units_are_hardened(self):
        if shutil.which("systemd-analyze") is None:
            self.skipTest("no systemd-analyze here")
        for unit in self.units:
            # 2.0 is what the tool calls OK; a unit without any of it has 9.6.
            code, said = run("systemd-analyze", "security", "--offline=true", "--threshold=20",
                             unit)
            self.assertEqual(code, 0, said)

    def test_units_start_again_whatever_ends_but_wrong_flags(self):
        for unit in self.units:
            text = unit.read_text()
            for line in ("Restart=always", "RestartPreventExitStatus=2", "StartLimitIntervalSec=0"):
                self.assertIn(f"\n{line}\n", text, unit.name)
            code, _, err = program(unit.stem, "--listen", "here")
            self.assertEqual(code, 2, err)

    def test_environment_files_set_flags_there_are(self):
        for unit in self.units:
            name = re.search(r"EnvironmentFile=/etc/conclave/(\S+)", unit.read_text())[1]
            lines = [line for line in (SYSTEMD / name).read_text().splitlines()
                     if line and not line.startswith("#")]
            names = {line.split("=", 1)[0] for line in lines}
            self.assertLessEqual(names, variables(unit.stem), name)
            (drain,) = [float(line.split("=")[1]) for line in lines if "_DRAIN_SECONDS=" in line]
            stop = float(re.search(r"TimeoutStopSec=(\d+)s", unit.read_text())[1])
            self.assertGreaterEqual(stop, drain + 10)


if __name__ == "__main__":
    unittest.main()
