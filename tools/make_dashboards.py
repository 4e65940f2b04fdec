#!/usr/bin/env python3
"""Writes the Grafana dashboards of deploy/grafana/dashboards from the list of panels below.

Usage: make_dashboards.py [--check]

--check writes nothing and exits with 1 if the files are not what this would write.
"""
import json
import pathlib
import sys

DASHBOARDS = pathlib.Path(__file__).resolve().parent.parent / "deploy" / "grafana" / "dashboards"
PER = 'cluster=~"$cluster", model=~"$model"'
RATE = "[$__rate_interval]"
COLUMNS = 24  # of Grafana's grid


def rate(metric, by="", labels=""):
    """Increases a second, summed; `by` lists what stays apart."""
    selector = f"{{{PER}{', ' + labels if labels else ''}}}"
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} (rate({metric}{selector}{RATE}))"


def gauge(metric, how="sum", by="", labels=""):
    grouping = f" by ({by})" if by else ""
    return f"{how}{grouping} ({metric}{{{PER}{', ' + labels if labels else ''}}})"


def quantiles(metric, which=(0.5, 0.95, 0.99), by=""):
    grouping = f"le, {by}" if by else "le"
    legend = f" {{{{{by}}}}}" if by else ""
    return [(f"histogram_quantile({q}, {rate(metric + '_bucket', grouping)})",
             f"p{q * 100:g}{legend}") for q in which]


# A panel: title, what it tells, unit, [(expression, legend)], and its kind and width.
def panel(title, description, unit, targets, kind="timeseries", width=8, limits=None):
    return {"title": title, "description": description, "unit": unit, "targets": targets,
            "kind": kind, "width": width, "limits": limits}


def stat(title, description, unit, expression, limits=None):
    return panel(title, description, unit, [(expression, "")], "stat", 4, limits)


FIRST_TOKEN = "conclave_router_time_to_first_token_seconds"
FIRST_ANSWER = "conclave_router_time_to_first_answer_token_seconds"
REQUESTS = "conclave_router_requests_total"
ENDED = "conclave_router_thinking_ended_total"
FAILURES = 'outcome=~"internal|unavailable|data_loss|unknown|deadline_exceeded"'


def share(part, whole):
    """`or 0 * whole`: a part that was never seen, and a share of nothing while all is idle, are 0 and
    not a gap."""
    return f"({part} or 0 * {whole}) / ({whole} > 0) or 0 * {whole}"


SERVING = [
    ("Now", [
        stat("Workers ready", "Red when no request can be answered.", "short",
             gauge("conclave_router_workers_up", "max"), [("red", None), ("green", 1)]),
        stat("Requests in flight", "Admitted and not finished.", "short",
             gauge("conclave_router_inflight")),
        stat("Requests", "A second, of every outcome.", "reqps", rate(REQUESTS)),
        stat("First token, p95", "From a request's arrival. Objective: 95 % within 1.6 s.", "s",
             quantiles(FIRST_TOKEN, [0.95])[0][0], [("green", None), ("red", 1.6384)]),
        stat("First answer token, p95",
             "What a reader waits for when thinking is hidden. Objective: 95 % within 26 s.", "s",
             quantiles(FIRST_ANSWER, [0.95])[0][0], [("green", None), ("red", 26.2144)]),
        stat("Failures", "Share of requests that failed by our fault.", "percentunit",
             share(rate(REQUESTS, labels=FAILURES), rate(REQUESTS)),
             [("green", None), ("red", 0.05)]),
    ]),
    ("Traffic", [
        panel("Requests by outcome", "Status codes; resource_exhausted is a refusal for load.",
              "reqps", [(rate(REQUESTS, "outcome"), "{{outcome}}")]),
        panel("Requests by method", "The gRPC method, or what the HTTP path stands for.", "reqps",
              [(rate(REQUESTS, "method"), "{{method}}")]),
        panel("Tokens by kind", "Of requests that finished.", "short",
              [(rate(f"conclave_router_{kind}_tokens_total"), kind)
               for kind in ("prompt", "cached_prompt", "thinking", "answer", "tool_call")]),
        panel("Generated now", "Tokens a second that workers generate, finished requests or not.",
              "short", [(rate("conclave_worker_generated_tokens_total", "instance"),
                         "{{instance}}")]),
        panel("Goodput", "Requests whose answer began within 26 s, beside all that answered.",
              "reqps", [(rate(FIRST_ANSWER + "_bucket", labels='le="26.2144"'), "in time"),
                        (rate(FIRST_ANSWER + "_count"), "all")]),
        panel("Requests in flight", "By router.", "short",
              [(gauge("conclave_router_inflight", by="instance"), "{{instance}}")]),
    ]),
    ("Latency", [
        panel("First token", "From arrival to the first token, of thinking or answer.", "s",
              quantiles(FIRST_TOKEN)),
        panel("First answer token", "By thinking mode; raw is Generate.", "s",
              quantiles(FIRST_ANSWER, [0.5, 0.95], "mode")),
        panel("Between tokens", "Two events of one request.", "s",
              quantiles("conclave_router_inter_token_seconds")),
        panel("Decode step", "A forward pass that holds no prompt token.", "s",
              quantiles("conclave_worker_decode_step_seconds")),
        panel("Prefill step", "A forward pass that holds prompt tokens.", "s",
              quantiles("conclave_worker_prefill_step_seconds")),
        panel("Step time by phase", "Seconds of computing in a second, of all workers.",
              "percentunit", [(rate("conclave_worker_step_phase_seconds_total", "phase"),
                               "{{phase}}")]),
    ]),
    ("Queue", [
        panel("Waiting", "For any worker (router), or for their turn in one (worker).", "short",
              [(gauge("conclave_router_waiting"), "router"),
               (gauge("conclave_worker_waiting_sequences"), "worker")]),
        panel("Queue wait", "From arrival in the worker to the first step.", "s",
              quantiles("conclave_worker_queue_wait_seconds")),
        panel("Running", "Sequences that hold KV blocks.", "short",
              [(gauge("conclave_worker_running_sequences", by="instance"), "{{instance}}")]),
        panel("Workers", "Ready, of those the routers were told of, and those with wrong weights.",
              "short", [(gauge("conclave_router_workers_up", "max"), "ready"),
                        (gauge("conclave_router_workers", "max"), "configured"),
                        (gauge("conclave_router_workers_with_other_model", "max"),
                         "other model")]),
        panel("Failovers", "Requests that went on at another worker, in an hour.", "short",
              [(f"sum (increase(conclave_router_failovers_total{{{PER}}}[1h]))", "failovers")]),
        panel("Drains", "Processes told to stop, in an hour.", "short",
              [(f"sum (increase(conclave_router_drains_total{{{PER}}}[1h]))", "router"),
               (f"sum (increase(conclave_worker_drains_total{{{PER}}}[1h]))", "worker"),
               (f"sum (increase(conclave_shard_drains_total{{{PER}}}[1h]))", "shard")]),
    ]),
]

THINKING = [
    ("Thinking", [
        panel("Thinking and answer", "Tokens a second of requests that finished.", "short",
              [(rate("conclave_router_thinking_tokens_total"), "thinking"),
               (rate("conclave_router_forced_tokens_total"), "forced"),
               (rate("conclave_router_answer_tokens_total"), "answer")]),
        panel("Thinking share", "Of the tokens generated, those inside thinking.", "percentunit",
              [(f"{rate('conclave_router_thinking_tokens_total')} / "
                f"({rate('conclave_router_thinking_tokens_total')} + "
                f"{rate('conclave_router_answer_tokens_total')})", "thinking")]),
        panel("Thinking tokens of a request", "Of requests that thought.", "short",
              quantiles("conclave_router_thinking_tokens")),
        panel("Budget used", "Share of its budget that a request used; 1 is where it is cut.",
              "percentunit", quantiles("conclave_router_thinking_budget_used_ratio",
                                       [0.25, 0.5, 0.75])),
        panel("Thinking ended by", "natural: the model. budget, answer_reserve: cut. client: "
              "\"answer now\". none: still thinking at the end.", "reqps",
              [(rate(ENDED, "ended_by"), "{{ended_by}}")]),
        panel("Cut short", "Share of thoughts that a budget or the answer's reserve ended.",
              "percentunit",
              [(share(rate(ENDED, labels='ended_by=~"budget|answer_reserve"'), rate(ENDED)),
                "cut")]),
        panel("Mode mix", "Answers begun, by the mode in effect.", "reqps",
              [(rate(FIRST_ANSWER + "_count", "mode"), "{{mode}}")]),
        panel("Budget scale", "What the queue multiplies new budgets with; 1 is no change.",
              "percentunit", [(gauge("conclave_router_adaptive_budget_scale", "min"), "scale")]),
    ]),
    ("Experts", [
        panel("Pairs by shard", "(row, expert) pairs a second that workers sent to each shard, by "
              "its place in --shards; local: computed in the worker.", "short",
              [(rate("conclave_worker_shard_rows_total", "shard"), "{{shard}}")]),
        panel("Imbalance by layer", "The busiest expert of a shard over the mean, recent traffic; "
              "1 is even. A layer takes as long as its busiest expert.", "short",
              [(gauge("conclave_shard_expert_imbalance_ratio", "max", "layer"),
                "layer {{layer}}")]),
        panel("Dispatch latency", "From sending a dispatch to its whole answer.", "s",
              quantiles("conclave_worker_dispatch_seconds")),
        panel("Dispatch and combine", "Bytes of rows a second, both directions.", "Bps",
              [(rate("conclave_worker_dispatch_bytes_total", "transport"),
                "dispatch {{transport}}"),
               (rate("conclave_worker_combine_bytes_total", "transport"),
                "combine {{transport}}")]),
        panel("Dispatches sent again", "After a shard or its stream was lost.", "short",
              [(rate("conclave_worker_dispatch_retries_total", "transport"), "{{transport}}")]),
        panel("Shards up", "By place in --shards, in the worst worker's eyes.", "short",
              [(gauge("conclave_worker_shard_up", "min", "shard"), "{{shard}}"),
               (gauge("conclave_worker_missing_experts", "max"), "experts missing")]),
        panel("Shard compute", "Time to compute a batch.", "s",
              quantiles("conclave_shard_compute_seconds", [0.5, 0.95], "instance")),
        panel("Shard batch", "(row, expert) pairs merged into a batch, median.", "short",
              quantiles("conclave_shard_batch_rows", [0.5], "instance")),
        panel("Shard queue", "Dispatches that wait in a shard.", "short",
              [(gauge("conclave_shard_queue_frames", by="instance"), "{{instance}}")]),
        panel("Split steps", "Share of the steps whose attention and experts overlap, in two "
              "micro-batches (--micro_batch).", "percentunit",
              [(share(rate("conclave_worker_split_steps_total"),
                      rate("conclave_worker_steps_total")), "split")]),
        panel("Dispatches in a batch", "Dispatches that a shard merged into a batch; the mean is "
              "above 1 where several workers meet.", "short",
              [(rate("conclave_shard_batch_dispatches_sum", "instance") + " / "
                + rate("conclave_shard_batch_dispatches_count", "instance"), "{{instance}}")]),
        panel("Ways to shards", "Workers of each shard: all, and those that reach it through shared "
              "memory or over NCCL; the others' rows go over gRPC.", "short",
              [(gauge("conclave_shard_streams"), "all"),
               (gauge("conclave_shard_shared_memory_workers"), "shared memory"),
               (gauge("conclave_shard_nccl_workers"), "NCCL")]),
    ]),
    ("KV cache", [
        panel("KV blocks used", "Share of each worker's blocks.", "percentunit",
              [(gauge("conclave_worker_kv_blocks_used", by="instance") + " / "
                + gauge("conclave_worker_kv_blocks", by="instance"), "{{instance}}")]),
        panel("Preempted", "Sequences a second that gave their blocks back and are recomputed.",
              "short", [(rate("conclave_worker_preemptions_total", "instance"), "{{instance}}")]),
        panel("Prompt tokens from the cache", "Share of prompt tokens that needed no prefill.",
              "percentunit", [(share(rate("conclave_router_cached_prompt_tokens_total"),
                                     rate("conclave_router_prompt_tokens_total")), "cached")]),
    ]),
]


def thresholds(steps):
    return {"mode": "absolute",
            "steps": [{"color": color, "value": value} for color, value in steps]}


def grafana_panel(given, number, x, y):
    height = 4 if given["kind"] == "stat" else 8
    defaults = {"unit": given["unit"], "min": 0}
    if given["limits"]:
        defaults["thresholds"] = thresholds(given["limits"])
    options = {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
               "tooltip": {"mode": "multi", "sort": "desc"}}
    if given["kind"] == "stat":
        options = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
    return {
        "id": number, "type": given["kind"], "title": given["title"],
        "description": given["description"],
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": {"x": x, "y": y, "w": given["width"], "h": height},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [{"refId": chr(ord("A") + i), "expr": expression, "legendFormat": legend,
                     "datasource": {"type": "prometheus", "uid": "${datasource}"}}
                    for i, (expression, legend) in enumerate(given["targets"])],
    }


def variable(name, label, query):
    return {"name": name, "label": label, "type": "query",
            "datasource": {"type": "prometheus", "uid": "${datasource}"},
            "query": {"query": query, "refId": name}, "definition": query, "refresh": 2,
            "includeAll": True, "multi": True, "allValue": ".*", "sort": 1,
            "current": {"text": "All", "value": "$__all"}}


def dashboard(uid, title, description, rows):
    panels, y, number = [], 0, 1
    for row_title, row in rows:
        panels.append({"id": number, "type": "row", "title": row_title, "collapsed": False,
                       "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1}, "panels": []})
        y, x, number = y + 1, 0, number + 1
        for given in row:
            if x + given["width"] > COLUMNS:
                x, y = 0, y + panels[-1]["gridPos"]["h"]
            panels.append(grafana_panel(given, number, x, y))
            x, number = x + given["width"], number + 1
        y += panels[-1]["gridPos"]["h"]
    return {
        "uid": uid, "title": title, "description": description, "tags": ["conclave"],
        "schemaVersion": 38, "editable": False, "graphTooltip": 1, "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [
            {"name": "datasource", "label": "Data source", "type": "datasource",
             "query": "prometheus"},
            variable("cluster", "Cluster", "label_values(conclave_router_workers, cluster)"),
            variable("model", "Model",
                     'label_values(conclave_router_workers{cluster=~"$cluster"}, model)'),
        ]},
        "panels": panels,
    }


def main():
    made = {
        "serving.json": dashboard("conclave-serving", "Conclave: serving",
                                  "Traffic, latency, first answer and queue.", SERVING),
        "thinking-and-experts.json": dashboard(
            "conclave-thinking", "Conclave: thinking and experts",
            "Thinking tokens and budgets, the load of experts, KV cache.", THINKING),
    }
    for name, content in made.items():
        path, text = DASHBOARDS / name, json.dumps(content, indent=1) + "\n"
        if "--check" not in sys.argv[1:]:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            sys.exit(f"{path} is not what tools/make_dashboards.py writes; run it")


if __name__ == "__main__":
    main()
