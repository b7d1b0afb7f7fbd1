#!/usr/bin/env bash
# End to end on one machine: banyan-trunk on the GPU, banyan-expert on the CPUs, banyan bench against
# them, with generated weights at the geometry of Qwen3-Next-80B-A3B, or fewer of its layers:
#   serve.sh [--layers N] [--log_dir DIR] [--threads N] [--expert_activations auto|f32|bf16] [--prompt_experts auto|off|N] [--vram_budget SIZE | --halves] POOL_FORMAT TRUNK_FORMAT
# BACKEND=cpu tries the script where there is no GPU. Prints start-up seconds, memory, tokens/s of decoding and of prompts, and where the trunk's time
# goes. KEEP_POOL=1 leaves the pool in /dev/shm for the next run. --vram_budget: the trunk has its own plan for a GPU of that size, and prompts up to 30,720 tokens. --halves: instead, prompts of 512 to 8,192 tokens from a trunk with steps of 2,111 rows, one with
# steps of 4,096 and one with steps of 4,159 in two halves.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/gpu/common.sh
. "$here/common.sh"
find_programs "$here"
layers=48
log_dir=.
threads=$(($(nproc) - 1))  # one CPU for the trunk's thread
activations=auto
halves=no
budget=
prompt_experts=auto
while [[ ${1:-} == --* ]]; do
  case $1 in
    --halves) halves=yes; shift; continue ;;
    --layers) layers=$2 ;;
    --log_dir) log_dir=$2 ;;
    --threads) threads=$2 ;;
    --expert_activations) activations=$2 ;;
    --vram_budget) budget=$2 ;;
    --prompt_experts) prompt_experts=$2 ;;
    *) printf 'serve.sh: %s: unknown\n' "$1" >&2; exit 2 ;;
  esac
  shift 2
done
[[ $# -eq 2 ]] || {
  printf 'usage: serve.sh [--layers N] [--expert_activations TYPE] POOL_FORMAT TRUNK_FORMAT\n' >&2
  exit 2
}
pool_format=$1
trunk_format=$2
name=$pool_format-$trunk_format-$activations-$prompt_experts-$layers${budget:+-$budget}

work=$(mktemp -d)
pids=()
clean_up() {
  end_processes "${pids[@]}"
  rm -rf "$work"
  [[ -n ${KEEP_POOL:-} ]] || remove_segment "$log_dir/expert-$name.log"
}
trap clean_up EXIT
enlarge_shm
write_model "$work/model" "$layers"

# What the machine's memory would allow, measured while nothing else runs.
"$bin/banyan" plan --model "$work/model" --load_format dummy --pool_format "$pool_format" --shards 1 \
  --vram_budget 8GiB --host_budget 120GiB 2>/dev/null | grep '^roof' || true
begin=$SECONDS
"$bin/banyan-expert" --model "$work/model" --load_format dummy --pool_format "$pool_format" \
  --pool_memory shm --listen "unix:$work/expert" --metrics_listen 127.0.0.1:9102 \
  --threads "$threads" >"$log_dir/expert-$name.log" 2>&1 &
pids+=($!)
# trunk NAME METRICS_PORT FLAG...: at unix:$work/NAME
trunk() {
  local socket=$1 port=$2
  shift 2
  "$bin/banyan-trunk" --model "$work/model" --load_format dummy --backend "${BACKEND:-cuda}" \
    --trunk_format "$trunk_format" --expert_activations "$activations" --prompt_experts "$prompt_experts" \
    --experts "unix:$work/expert" \
    --listen "unix:$work/$socket" --metrics_listen "127.0.0.1:$port" "$@" >"$log_dir/$socket-$name.log" 2>&1 &
  pids+=($!)
}
await() {
  until "$bin/banyan" status --server "unix:$work/$1" --wait 2 --health >/dev/null 2>&1; do
    for pid in "${pids[@]}"; do
      kill -0 "$pid" 2>/dev/null || { tail -n 5 "$log_dir"/*-"$name".log; exit 1; }
    done
  done
}
bench() {
  local socket=$1
  shift
  printf '%s\n' "-- $socket $*"
  "$bin/banyan" bench --server "unix:$work/$socket" "$@" | tee -a "$log_dir/bench-$name.log"
}
scrape() {
  python3 -c "
import urllib.request
for port in $2:
    for line in urllib.request.urlopen(f'http://127.0.0.1:{port}/metrics').read().decode().splitlines():
        if line[:1] != '#' and ('phase' in line or 'expert' in line or 'step' in line) and 'bucket' not in line:
            print(line)
" >"$log_dir/metrics-$name-$1.txt" || true; }
room=(--max_sequences 4 --max_context_tokens 32768)
if [[ $halves == yes ]]; then
  prompt_experts=off
  trunk undivided 9103 "${room[@]}" --max_batch_tokens 2111 --prefill_halves off
  trunk large 9104 "${room[@]}" --max_batch_tokens 4096 --prefill_halves off
  trunk halves 9105 "${room[@]}" --max_batch_tokens 4159 --prefill_halves 256
  for socket in undivided large halves; do await "$socket"; done
  printf '%s pool, %s trunk, %s layers: ready after %s s\n' "$pool_format" "$trunk_format" "$layers" \
    "$((SECONDS - begin))"
  for prompt in ${PROMPTS:-512 2048 4096 8192}; do
    for socket in undivided large halves; do
      bench "$socket" --concurrency 1 --requests "${REQUESTS:-2}" --prompt_tokens "$prompt" --max_new_tokens 1 |
        grep -E -- '--|prompt|tokens/s' | tr '\n' ' '
      printf '\n'
    done
    scrape "after-$prompt" '(9102, 9103, 9104, 9105)'
  done
  exit 0
fi
if [[ -n $budget ]]; then
  trunk trunk 9101 --vram_budget "$budget"
else
  trunk trunk 9101 "${room[@]}"
fi
await trunk
printf '%s pool, %s trunk, rows %s, %s layers: ready after %s s\n' "$pool_format" "$trunk_format" \
  "$activations" "$layers" "$((SECONDS - begin))"
grep -o -E 'expert_activations=[a-z0-9]*|prompt_experts experts.*' "$log_dir/trunk-$name.log" | head -n 2
nvidia-smi --query-gpu=name,memory.used --format=csv,noheader 2>/dev/null || true
for pid in "${pids[@]}"; do
  grep -E 'Name|VmHWM|RssAnon|RssFile|RssShmem' "/proc/$pid/status" | tr -s '\t\n' ' '
  printf '\n'
done
free -m | sed -n 2p

bench trunk --prompt_tokens 64 --max_new_tokens 16 --requests 1 >/dev/null
scrape before '(9101, 9102)'
bench trunk --concurrency 1 --requests 1 --prompt_tokens 64 --max_new_tokens 192
scrape decode '(9101, 9102)'
bench trunk --concurrency 1 --requests 3 --prompt_tokens 512 --max_new_tokens 1
bench trunk --concurrency 1 --requests 2 --prompt_tokens 2048 --max_new_tokens 1
bench trunk --concurrency 1 --requests 2 --prompt_tokens 4096 --max_new_tokens 1
if [[ -n $budget ]]; then
  bench trunk --concurrency 1 --requests 1 --prompt_tokens 30720 --max_new_tokens 16
  nvidia-smi --query-gpu=memory.used --format=csv,noheader 2>/dev/null || true
fi
scrape prefill '(9101, 9102)'
bench trunk --concurrency 4 --requests 4 --prompt_tokens 64 --max_new_tokens 96
