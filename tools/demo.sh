#!/usr/bin/env bash
# Starts a cluster with the demo model, asks it things on the terminal, shows its state, stops it.
# Usage: tools/demo.sh BIN_DIR MODEL_DIR. Exits 0 only if every answer was what it should be.
set -euo pipefail
bin=$1
model=$2
work=$(mktemp -d)
up_pid=

# Whatever happens, nothing stays behind: `conclave up` takes its processes with it.
cleanup() {
  [[ -z $up_pid ]] || kill "$up_pid" 2>/dev/null || true
  wait
  rm -rf "$work"
}
trap cleanup EXIT

fail() {
  echo "demo: $*" >&2
  tail -n 20 "$work"/up.txt "$work"/logs/*.log >&2 2>/dev/null || true
  exit 1
}

bold() { if [[ -t 1 ]]; then printf '\n\e[1m%s\e[0m\n' "$*"; else printf '\n== %s\n' "$*"; fi; }

[[ -f $model/model.safetensors || -f $model/model.safetensors.index.json ]] ||
  fail "$model holds no weights"

bold "conclave up --model $model --workers 1 --shards 2"
"$bin/conclave" up --model "$model" --workers 1 --shards 2 --log_dir "$work/logs" \
  >"$work/up.txt" 2>&1 &
up_pid=$!
for ((i = 0; i < 1200; ++i)); do
  grep -q '^Conclave is ready' "$work/up.txt" && break
  kill -0 "$up_pid" 2>/dev/null || fail "the cluster did not start"
  sleep 0.1
done
cat "$work/up.txt"
grep -q '^Conclave is ready' "$work/up.txt" || fail "the cluster was not ready within 2 minutes"
endpoint=$(awk '$1 == "router" {print $3}' "$work/up.txt")
http=$(awk '$1 == "router" {print $5}' "$work/up.txt")
metrics=$(awk '$1 == "router" {print $7}' "$work/up.txt")

# ask TITLE CHECK ARGS..: streams an answer, then asks again: the same request gives the same
# tokens, so that the second answer, read by a program, is the one that was shown. CHECK is a
# Python expression on it.
ask() {
  local title=$1 check=$2
  shift 2
  bold "$title"
  printf '   conclave chat'
  printf ' %q' "$@"
  printf '\n\n'
  "$bin/conclave" chat --endpoint "$endpoint" --temperature 0 --stats "$@" || fail "$title"
  "$bin/conclave" chat --endpoint "$endpoint" --temperature 0 --json "$@" >"$work/answer.json" ||
    fail "$title"
  python3 -c "
import json, sys
answer = json.load(open(sys.argv[1]))
if not ($check):
    sys.exit('not what was expected: ' + json.dumps(answer, ensure_ascii=False))
" "$work/answer.json" || fail "$title"
}

cat >"$work/tools.json" <<'JSON'
[{"type": "function", "function": {"name": "get_weather",
  "description": "Get the current weather of a city.",
  "parameters": {"type": "object", "properties": {"city": {"type": "string",
    "description": "City name"}}, "required": ["city"]}}},
 {"type": "function", "function": {"name": "calculate",
  "description": "Evaluate an arithmetic expression.",
  "parameters": {"type": "object", "properties": {"expression": {"type": "string",
    "description": "Arithmetic expression, e.g. 12*7+3"}}, "required": ["expression"]}}}]
JSON

ask "Thinking" 'answer["thinking"] and "109" in answer["content"]' \
  --think "What is 48 + 37 - 19 + 43?"
ask "Not thinking: quicker, and worse at sums" 'not answer["thinking"] and answer["content"]' \
  --no_think "What is 17 + 25?"
ask "The model's own switch" 'not answer["thinking"] and answer["content"]' \
  "Hello! /no_think"
ask "At most 16 tokens of thinking, then it must answer" \
  'answer["thinking_report"]["used"] <= 16 and answer["thinking_report"]["ended_by"] == "budget"' \
  --think --thinking_budget 16 "What is 48 + 37 - 19 + 43?"
ask "In Chinese" 'answer["thinking"] and "42" in answer["content"]' \
  --think "17加25等于多少?"
ask "A tool call" 'answer["tool_calls"][0]["function"]["name"] == "get_weather"' \
  --think --tools "$work/tools.json" "What is the weather in Paris?"

# The call goes back with the tool's result, as a client would do it.
python3 - "$work/answer.json" >"$work/messages.json" <<'PY'
import json, sys
answer = json.load(open(sys.argv[1]))
calls = answer["tool_calls"]
result = {"temperature": 21, "condition": "sunny"}
print(json.dumps([
    {"role": "user", "content": "What is the weather in Paris?"},
    {"role": "assistant", "content": answer["content"], "tool_calls": calls},
    {"role": "tool", "tool_call_id": calls[0]["id"], "content": json.dumps(result)}]))
PY
ask "And with the tool's result" '"21" in answer["content"]' \
  --think --tools "$work/tools.json" --messages "$work/messages.json"

bold "The same over OpenAI's API: POST $http/chat/completions, thinking_budget 16"
python3 - "$http" <<'PY' || fail "the HTTP API does not answer"
import json, sys, urllib.request
body = {"messages": [{"role": "user", "content": "What is 48 + 37 - 19 + 43?"}],
        "thinking_budget": 16, "thinking_report": True, "seed": 1}
request = urllib.request.Request(f"{sys.argv[1]}/chat/completions", json.dumps(body).encode(),
                                 {"Content-Type": "application/json"})
answer = json.load(urllib.request.urlopen(request, timeout=60))
choice = answer["choices"][0]
print("content  ", choice["message"]["content"])
print("thinking ", json.dumps(choice["thinking"]))
print("usage    ", json.dumps(answer["usage"]))
assert choice["thinking"]["used"] == 16 and choice["thinking"]["ended_by"] == "budget"
PY

bold "conclave status"
"$bin/conclave" status --endpoint "$endpoint" || fail "the cluster does not serve"

bold "Metrics of the router ($metrics)"
python3 - "$metrics" <<'PY' || fail "the router has no metrics"
import sys, urllib.request
text = urllib.request.urlopen(sys.argv[1], timeout=10).read().decode()
values = {}
for line in text.splitlines():
    if line and not line.startswith("#"):
        name, value = line.rsplit(" ", 1)
        name = name.split("{")[0]
        values[name] = values.get(name, 0.0) + float(value)
def mean(name):
    return values[name + "_sum"] / values[name + "_count"]
print(f"thinking tokens             {values['conclave_router_thinking_tokens_sum']:.0f} in "
      f"{values['conclave_router_thinking_tokens_count']:.0f} requests that thought")
print(f"time to first token         {1e3 * mean('conclave_router_time_to_first_token_seconds'):.1f} ms on average")
print(f"time between tokens         {1e3 * mean('conclave_router_inter_token_seconds'):.2f} ms on average, "
      f"{1 / mean('conclave_router_inter_token_seconds'):.0f} tokens/s per request")
PY

bold "Ctrl-C: drain and stop"
kill -INT "$up_pid"
wait "$up_pid" || fail "the cluster did not stop cleanly"
up_pid=
tail -n 6 "$work/up.txt"
