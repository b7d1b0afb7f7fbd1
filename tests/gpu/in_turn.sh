#!/usr/bin/env bash
# Trunks beside each other, asked in turn: what differs between them shows within 1 %, where two runs
# of serve.sh differ by 5 and two hosts by 30. One expert host, generated weights at the geometry of
# Qwen3-Next-80B-A3B.
#   in_turn.sh [--layers N] [--log_dir DIR] [--rounds N] [--requests N] [--prompts N,N] POOL_FORMAT NAME=TRUNK[,FLAG...]...
# TRUNK: a banyan-trunk, or nothing for the one here. Such as
#   in_turn.sh nf4 before=old/banyan-trunk now= off=,--prompt_experts,off
# Prints, round by round, milliseconds to the first token for each prompt length: mean, p50, p90, p99 of a
# round's requests. BACKEND=cpu tries the script where there is no GPU.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/gpu/common.sh
. "$here/common.sh"
find_programs "$here"
layers=48
log_dir=.
rounds=3
requests=3
prompts=2048
while [[ ${1:-} == --* ]]; do
  case $1 in
    --layers) layers=$2 ;;
    --log_dir) log_dir=$2 ;;
    --rounds) rounds=$2 ;;
    --requests) requests=$2 ;;
    --prompts) prompts=$2 ;;
    *) printf 'in_turn.sh: %s: unknown\n' "$1" >&2; exit 2 ;;
  esac
  shift 2
done
[[ $# -ge 2 ]] || { printf 'usage: in_turn.sh [OPTION...] POOL_FORMAT NAME=TRUNK[,FLAG...]...\n' >&2; exit 2; }
pool_format=$1
shift
work=$(mktemp -d)
pids=()
clean_up() {
  end_processes "${pids[@]}"
  rm -rf "$work"
  remove_segment "$log_dir/expert-$pool_format-in-turn.log"
}
trap clean_up EXIT
enlarge_shm
write_model "$work/model" "$layers"
"$bin/banyan-expert" --model "$work/model" --load_format dummy --pool_format "$pool_format" \
  --pool_memory shm --listen "unix:$work/expert" --metrics_listen "" \
  --threads "$(($(nproc) - 1))" >"$log_dir/expert-$pool_format-in-turn.log" 2>&1 &
pids+=($!)
names=()
for trunk in "$@"; do
  name=${trunk%%=*}
  IFS=, read -r -a words <<<"${trunk#*=}"
  program=${words[0]:-}
  "${program:-$bin/banyan-trunk}" --model "$work/model" --load_format dummy \
    --backend "${BACKEND:-cuda}" --trunk_format bf16 --experts "unix:$work/expert" \
    --listen "unix:$work/$name" --metrics_listen "" --max_sequences 2 --max_context_tokens 8192 \
    "${words[@]:1}" >"$log_dir/$name-$pool_format-in-turn.log" 2>&1 &
  pids+=($!)
  names+=("$name")
  # One after the other: what a trunk measures as it starts is its own.
  log=$log_dir/$name-$pool_format-in-turn.log
  "$bin/banyan" status --server "unix:$work/$name" --wait 120 --health >/dev/null ||
    { tail -n 5 "$log"; exit 1; }
  printf '%s: %s\n' "$name" "$(grep -o -E '(no_)?prompt_experts [a-z]+=.*' "$log" | head -n 1)"
done
for ((round = 1; round <= rounds; ++round)); do
  for name in "${names[@]}"; do
    for prompt in ${prompts//,/ }; do
      printf '%s %s %s, %s tokens: ' "$round" "$pool_format" "$name" "$prompt"
      "$bin/banyan" bench --server "unix:$work/$name" --concurrency 1 --requests "$requests" \
        --prompt_tokens "$prompt" --max_new_tokens 1 | grep 'first token'
    done
  done
done
