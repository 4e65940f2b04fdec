"""The overlays of deploy/kubernetes: rendered by kustomize, held against Kubernetes' own schemas,
and against what the pods rely on among one another."""
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import unittest

import kubernetes_validate
import yaml

from programs import conclave, variables

SOURCE_DIR = pathlib.Path(os.environ["CONCLAVE_SOURCE_DIR"])
OVERLAYS = SOURCE_DIR / "deploy" / "kubernetes" / "overlays"
PROMETHEUS = SOURCE_DIR / "deploy" / "prometheus"
# pod-index labels need 1.28 or later; the newest is what the package calls its default.
VERSIONS = ["1.28", "1.37"]
# The overlays that `conclave plan` prints, each with what it is asked.
PLANS = {
    "h20x4-235b": ["--config", "qwen3-235b-a22b", "--dtype", "fp8", "--gpu", "h20-96gb",
                   "--gpus", 4],
    "h100x1-30b": ["--config", "qwen3-30b-a3b", "--gpu", "h100"],
}
# Flags of a worker in a pod that no plan is about.
OF_A_POD = {"metrics_listen", "drain_seconds", "log_format"}
PROGRAMS = {"router": "conclave-router", "worker": "conclave-worker",
            "shard": "conclave-expert-shard"}


def renderer():
    if shutil.which("kustomize"):
        return ["kustomize", "build"]
    if shutil.which("kubectl"):
        return ["kubectl", "kustomize"]
    return None


def render(overlay):
    done = subprocess.run([*renderer(), str(overlay)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr, done.stderr
    return list(yaml.safe_load_all(done.stdout))


class Overlay:
    def __init__(self, path):
        self.name = path.name
        self.objects = render(path)

    def of_kind(self, *kinds):
        return [thing for thing in self.objects if thing["kind"] in kinds]

    def named(self, kind, name):
        found = [thing for thing in self.of_kind(kind) if thing["metadata"]["name"] == name]
        assert len(found) == 1, (self.name, kind, name)
        return found[0]

    def workloads(self):
        return self.of_kind("Deployment", "StatefulSet")

    def environment(self, workload):
        """What the container's variables are, but for those that differ from pod to pod."""
        container = workload["spec"]["template"]["spec"]["containers"][0]
        flags = {}
        for source in container["envFrom"]:
            flags.update(self.named("ConfigMap", source["configMapRef"]["name"])["data"])
        return flags


class KubernetesTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.overlays = [Overlay(path) for path in sorted(OVERLAYS.iterdir())]

    def for_each(self, kinds, check):
        """check(overlay, object) for the objects of these kinds, of all if empty, as subtests."""
        for overlay in self.overlays:
            for thing in overlay.of_kind(*kinds) if kinds else overlay.objects:
                with self.subTest(f"{overlay.name} {thing['kind']} {thing['metadata']['name']}"):
                    check(overlay, thing)

    def test_every_object_is_valid(self):
        def check(_, thing):
            for version in VERSIONS:
                kubernetes_validate.validate(thing, version, strict=True)
        self.for_each([], check)

    def test_selectors_find_their_pods(self):
        def check(overlay, thing):
            spec = thing["spec"]
            wanted = spec.get("podSelector", spec.get("selector"))
            wanted = wanted.get("matchLabels", wanted)
            pods = [workload["spec"]["template"] for workload in overlay.workloads()]
            found = [pod for pod in pods if wanted.items() <= pod["metadata"]["labels"].items()]
            self.assertTrue(found, wanted)
            for port in [port["targetPort"] for port in spec.get("ports", [])]:
                for pod in found:
                    ports = pod["spec"]["containers"][0]["ports"]
                    self.assertIn(port, [named["name"] for named in ports])
        self.for_each(["Service", "PodDisruptionBudget", "NetworkPolicy"], check)

    def test_routers_know_the_workers_by_their_one_name(self):
        """However many replicas there are: the headless Service is the address of each."""
        for overlay in self.overlays:
            with self.subTest(overlay.name):
                flags = overlay.environment(overlay.named("Deployment", "conclave-router"))
                self.assertEqual(flags["CONCLAVE_ROUTER_WORKERS"], "dns:///conclave-worker:50051")
                service = overlay.named("Service", "conclave-worker")["spec"]
                self.assertEqual(service["clusterIP"], "None")
                self.assertEqual(service["ports"][0]["port"], 50051)

    def test_holders_of_experts_are_named_one_by_one(self):
        """So that a shard's place in the list is its number: the list grows with the replicas, each
        of which has its share."""
        for overlay in self.overlays:
            with self.subTest(overlay.name):
                flags = overlay.environment(overlay.named("StatefulSet", "conclave-worker"))
                wanted = []
                for workload in overlay.of_kind("StatefulSet"):
                    holder = overlay.environment(workload)
                    name, replicas = workload["metadata"]["name"], workload["spec"]["replicas"]
                    counts = [int(holder[key]) for key in holder if key.endswith("_NUM_SHARDS")]
                    if not counts:
                        continue
                    self.assertEqual(counts, [replicas])
                    port = workload["spec"]["template"]["spec"]["containers"][0]["ports"][0]
                    wanted += [f"dns:///{name}-{i}.{name}:{port['containerPort']}"
                               for i in range(replicas)]
                    self.check_index(workload)
                    # Else those that wait for one another would not find one another.
                    service = overlay.named("Service", workload["spec"]["serviceName"])["spec"]
                    self.assertTrue(service["publishNotReadyAddresses"])
                    self.check_workers_may_reach(overlay, workload)
                targets = flags.get("CONCLAVE_WORKER_SHARDS", "").split(",")
                self.assertEqual([t for t in targets if t], wanted)

    def check_index(self, workload):
        """The pod's number, which Kubernetes 1.28 and later give it as a label."""
        container = workload["spec"]["template"]["spec"]["containers"][0]
        (index,) = [variable["valueFrom"]["fieldRef"]["fieldPath"] for variable in container["env"]
                    if variable["name"].endswith("_SHARD_INDEX")]
        self.assertEqual(index, "metadata.labels['apps.kubernetes.io/pod-index']")

    def check_workers_may_reach(self, overlay, workload):
        labels = workload["spec"]["template"]["metadata"]["labels"]
        worker = overlay.named("StatefulSet", "conclave-worker")["spec"]["template"]["metadata"]
        allowed = [
            source["podSelector"]["matchLabels"]
            for policy in overlay.of_kind("NetworkPolicy")
            if policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
            for rule in policy["spec"].get("ingress", [])
            if {"port": "grpc", "protocol": "TCP"} in rule["ports"]
            for source in rule.get("from", []) if "podSelector" in source]
        self.assertTrue([wanted for wanted in allowed
                         if wanted.items() <= worker["labels"].items()], allowed)

    def test_only_routers_and_holders_of_experts_are_reached_by_workers(self):
        """A worker without experts of its own is reached by routers alone."""
        for overlay in self.overlays:
            worker = overlay.named("StatefulSet", "conclave-worker")
            policies = {policy["metadata"]["name"] for policy in overlay.of_kind("NetworkPolicy")}
            ring = "CONCLAVE_WORKER_NUM_SHARDS" in overlay.environment(worker)
            self.assertEqual("conclave-worker-ring" in policies, ring, overlay.name)

    def test_pods_that_are_not_ready_may_be_evicted(self):
        """Workers wait for one another's experts: a budget that counts those would end in a drain
        of a node that never ends."""
        def check(_, budget):
            if budget["metadata"]["name"] != "conclave-router":
                self.assertEqual(budget["spec"]["unhealthyPodEvictionPolicy"], "AlwaysAllow")
        self.for_each(["PodDisruptionBudget"], check)

    def test_the_grace_period_holds_the_drain(self):
        def check(overlay, workload):
            pod = workload["spec"]["template"]["spec"]
            (drain,) = [float(value) for key, value in overlay.environment(workload).items()
                        if key.endswith("_DRAIN_SECONDS")]
            pause = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
            self.assertEqual(pause[0], "sleep")
            # Five seconds to close and free, as `conclave up` gives.
            self.assertGreaterEqual(pod["terminationGracePeriodSeconds"],
                                    drain + int(pause[1]) + 5)
        self.for_each(["Deployment", "StatefulSet"], check)

    def test_the_autoscaler_has_what_it_measures_and_the_last_word(self):
        def check(overlay, scaler):
            target = scaler["spec"]["scaleTargetRef"]
            workload = overlay.named(target["kind"], target["name"])
            self.assertNotIn("replicas", workload["spec"])
            container = workload["spec"]["template"]["spec"]["containers"][0]
            for metric in scaler["spec"]["metrics"]:
                # A share of what is requested; metrics-server knows no others.
                self.assertEqual(metric["type"], "Resource")
                self.assertIn(metric["resource"]["name"], container["resources"]["requests"])
            self.assertGreaterEqual(scaler["spec"]["minReplicas"], 2)
        self.for_each(["HorizontalPodAutoscaler"], check)

    def test_a_disruption_takes_one_at_a_time(self):
        for overlay in self.overlays:
            budgets = {budget["metadata"]["name"]: budget["spec"]
                       for budget in overlay.of_kind("PodDisruptionBudget")}
            for workload in overlay.workloads():
                self.assertEqual(budgets[workload["metadata"]["name"]]["maxUnavailable"], 1)

    def test_who_may_reach_whom(self):
        """Anyone a router, routers workers, workers shards; Prometheus what serves /metrics."""
        peers = {"conclave-worker": "conclave-router", "conclave-expert-shard": "conclave-worker"}
        for overlay in self.overlays:
            policies = {policy["metadata"]["name"]: policy["spec"]
                        for policy in overlay.of_kind("NetworkPolicy")}
            everyone = policies.pop("conclave-default-deny")
            self.assertEqual(everyone["podSelector"]["matchLabels"],
                             {"app.kubernetes.io/part-of": "conclave"})
            self.assertNotIn("ingress", everyone)
            for workload in overlay.workloads():
                pod = workload["spec"]["template"]
                self.assertEqual(pod["metadata"]["labels"]["app.kubernetes.io/part-of"], "conclave")
                name = pod["metadata"]["labels"]["app.kubernetes.io/name"]
                allowed = policies[name]["ingress"]
                if name == "conclave-router":
                    self.assertNotIn("from", allowed[0])
                    continue
                grpc, metrics = allowed
                self.assertEqual(grpc["from"], [{"podSelector": {"matchLabels": {
                    "app.kubernetes.io/name": peers[name]}}}])
                self.assertEqual([port["port"] for port in grpc["ports"]], ["grpc"])
                self.assertEqual([port["port"] for port in metrics["ports"]], ["metrics"])

    def test_ports_and_probes_are_what_the_flags_say(self):
        def check(overlay, workload):
            container = workload["spec"]["template"]["spec"]["containers"][0]
            flags = overlay.environment(workload)
            ports = {port["name"]: port["containerPort"] for port in container["ports"]}
            for key, value in flags.items():
                if key.endswith("_LISTEN"):
                    name = "http" if "HTTP" in key else "metrics" if "METRICS" in key else "grpc"
                    self.assertEqual(value, f"0.0.0.0:{ports[name]}")
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                self.assertEqual(container[probe]["grpc"]["port"], ports["grpc"])
            self.assertNotIn("service", container["readinessProbe"]["grpc"])
            for probe in ("startupProbe", "livenessProbe"):
                self.assertEqual(container[probe]["grpc"]["service"], "liveness")
            annotations = workload["spec"]["template"]["metadata"]["annotations"]
            self.assertEqual(int(annotations["prometheus.io/port"]),
                             ports.get("metrics", ports.get("http")))
        self.for_each(["Deployment", "StatefulSet"], check)

    def test_every_variable_is_a_flag(self):
        def check(overlay, workload):
            container = workload["spec"]["template"]["spec"]["containers"][0]
            self.assertEqual(container["command"], [PROGRAMS[container["name"]]])
            mine = set(overlay.environment(workload)) | {
                variable["name"] for variable in container.get("env", [])}
            self.assertLessEqual(mine, variables(container["command"][0]))
        self.for_each(["Deployment", "StatefulSet"], check)

    def test_pods_may_do_little(self):
        def check(_, workload):
            pod = workload["spec"]["template"]["spec"]
            self.assertFalse(pod["automountServiceAccountToken"])
            self.assertTrue(pod["securityContext"]["runAsNonRoot"])
            container = pod["containers"][0]
            self.assertTrue(container["securityContext"]["readOnlyRootFilesystem"])
            self.assertEqual(container["securityContext"]["capabilities"], {"drop": ["ALL"]})
            for mount in container.get("volumeMounts", []):
                self.assertTrue(mount["readOnly"])
            self.assertIn("memory", container["resources"]["limits"])
        self.for_each(["Deployment", "StatefulSet"], check)

    def test_series_carry_cluster_and_model(self):
        def check(overlay, workload):
            labels = workload["spec"]["template"]["metadata"]["labels"]
            self.assertEqual(labels["conclave.dev/cluster"], overlay.name)
            self.assertIn("conclave.dev/model", labels)
        self.for_each(["Deployment", "StatefulSet"], check)

    def test_rules_name_jobs_there_are(self):
        """Those of prometheus.yml; here a pod's app.kubernetes.io/name becomes its job."""
        config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
        jobs = {job["job_name"] for job in config["scrape_configs"]}
        self.assertEqual(jobs, {
            workload["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"]
            for overlay in self.overlays for workload in overlay.workloads()})
        named = re.findall(r'job(=~?)"([^"]+)"', (PROMETHEUS / "rules/alerts.yml").read_text())
        self.assertTrue(named)
        for operator, wanted in named:
            pattern = wanted if operator == "=~" else re.escape(wanted)
            self.assertTrue([job for job in jobs if re.fullmatch(pattern, job)], wanted)

    def test_prometheus_finds_the_port_of_metrics(self):
        """kubernetes.yml keeps a container's port of these names, one in each pod."""
        (scrape,) = yaml.safe_load((PROMETHEUS / "kubernetes.yml").read_text())["scrape_configs"]
        (kept,) = [rule["regex"] for rule in scrape["relabel_configs"]
                   if rule["source_labels"] == ["__meta_kubernetes_pod_container_port_name"]]

        def check(_, workload):
            pod = workload["spec"]["template"]
            ports = [port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]
                     if re.fullmatch(kept, port["name"])]
            self.assertEqual([str(port) for port in ports],
                             [pod["metadata"]["annotations"]["prometheus.io/port"]])
        self.for_each(["Deployment", "StatefulSet"], check)

    def test_gpu_overlays_are_what_the_planner_lays_out(self):
        for name, question in PLANS.items():
            with self.subTest(name):
                code, out, err = conclave("plan", *question, "--json")
                self.assertEqual(code, 0, err)
                (overlay,) = [o for o in self.overlays if o.name == name]
                self.check_plan(overlay, json.loads(out))

    def check_plan(self, overlay, plan):
        worker = overlay.named("StatefulSet", "conclave-worker")
        self.assertEqual(overlay.of_kind("StatefulSet"), [worker], "one process a card")
        planned = [process["argv"] for process in plan["commands"]["processes"]]
        self.assertEqual(planned.pop()[0], "conclave-router")
        self.assertEqual(len(planned), len(plan["cards"]))
        self.assertEqual(worker["spec"]["replicas"], len(planned))
        limits = worker["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
        self.assertEqual(limits["nvidia.com/gpu"], 1)
        deployed = {key.removeprefix("CONCLAVE_WORKER_").lower(): value
                    for key, value in overlay.environment(worker).items()}
        for card, argv in enumerate(planned):
            self.assertEqual(argv[0], "conclave-worker")
            wanted = {flag.removeprefix("--"): value for flag, value in zip(argv[1::2], argv[2::2])}
            # A pod sees its card alone.
            self.assertEqual(wanted.pop("device"), f"cuda:{card}")
            self.assertEqual(deployed["device"], "cuda")
            self.check_experts(plan["cards"][card], wanted, deployed, card)
            # Whatever else is planned is deployed with the same value, and nothing else that decides
            # what is where: KV cache, dtype, transport.
            names = wanted.keys() | deployed.keys() - OF_A_POD
            for flag in names - {"model", "listen", "device", "shards", "num_shards"}:
                self.assertEqual(deployed.get(flag), wanted.get(flag), flag)

    def check_experts(self, planned, wanted, deployed, card):
        count = int(deployed.get("num_shards", 0))
        if "local_experts" not in wanted:
            self.assertEqual(count, 0)
            self.assertNotIn("shards", deployed)
            return
        # Equal parts in the order of the cards: what --shard_index and --num_shards give.
        size = planned["num_experts"]
        self.assertEqual(wanted.pop("local_experts"), f"{card * size}-{(card + 1) * size - 1}")
        self.assertEqual(planned["experts"], f"{card * size}-{(card + 1) * size - 1}")
        # The planned ones know the others, the deployed ones all, themselves too.
        self.assertEqual(len(wanted["shards"].split(",")) + 1, count)
        self.assertEqual(len(deployed["shards"].split(",")), count)


if __name__ == "__main__":
    if renderer() is None:
        print("SKIPPED: kubernetes_test.py: neither kustomize nor kubectl (1.27 or later) is here")
        sys.exit(77)
    unittest.main()
