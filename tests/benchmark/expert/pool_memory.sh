#!/usr/bin/env bash
# Time to READY, CPU time and host memory of an expert host in each --pool_memory, with dummy weights of
# a model of which only config.json is needed; before that `banyan pack` says how fast it was.
#   pool_memory.sh BIN_DIR MODEL_DIR FORMAT SCRATCH_DIR
# Needs the pool's size on the disk of SCRATCH_DIR, in /dev/shm and in memory. A line:
#   what: seconds to READY (CPU seconds of the process), resident bytes / bytes of the pool
set -euo pipefail

[[ $# -eq 4 ]] || { printf 'usage: pool_memory.sh BIN_DIR MODEL_DIR FORMAT SCRATCH_DIR\n' >&2; exit 2; }
bin=$1 model=$2 format=$3 scratch=$4
packs=$scratch/packs log=$scratch/expert.log
mkdir -p "$packs"
pid=
segment=
cleanup() {
  [[ -z $pid ]] || kill "$pid" 2>/dev/null || true
  [[ -z $segment ]] || rm -f "$segment"
  rm -rf "$packs" "$log" "$scratch/expert.sock"
}
trap cleanup EXIT

field() { grep -m1 ' ready ' "$log" | grep -oP "(?<= $1=)\S+"; }

measure() {
  local what=$1
  shift
  "$bin/banyan-expert" --model "$model" --load_format dummy --pool_format "$format" \
    --pool_dir "$packs" --listen "unix:$scratch/expert.sock" --metrics_listen "" "$@" >"$log" 2>&1 &
  pid=$!
  until grep -q ' ready ' "$log"; do
    kill -0 "$pid" 2>/dev/null || { cat "$log" >&2; exit 1; }
    sleep 0.05
  done
  local rss_kib ticks
  rss_kib=$(awk '/^VmRSS/ { print $2 }' "/proc/$pid/status")
  ticks=$(awk '{ print $14 + $15 }' "/proc/$pid/stat")
  kill "$pid"
  wait "$pid" || true
  pid=
  awk -v what="$what" -v s="$(field seconds)" -v cpu="$ticks" -v hz="$(getconf CLK_TCK)" \
    -v rss="$rss_kib" -v pool="$(field pool_bytes)" -v reused="$(field segment_reused)" 'BEGIN {
      printf "%s: %.2f s (%.2f s of CPUs, %.2f GB/s of them), %.3f of %.2f GB%s\n", what, s, cpu / hz,
        pool / 1e9 / (cpu / hz), rss * 1024 / pool, pool / 1e9,
        reused == "true" ? ", segment taken over" : "" }'
}

measure "generated in memory"
"$bin/banyan" pack --model "$model" --load_format dummy --pool_format "$format" --pool_dir "$packs"
measure "map, cached" --pool_memory map
measure "anonymous, cached" --pool_memory anonymous
segment=/dev/shm/banyan-$(field fingerprint | cut -c1-16)-$format-width-0of1
measure "shm, filled" --pool_memory shm
measure "shm, again" --pool_memory shm
