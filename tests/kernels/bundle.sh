#!/usr/bin/env bash
# Packs the tests and benchmarks of the expert kernels into one folder that runs on an x86-64 machine with
# glibc and nothing of ours: for CPUs that the build machine does not have. Its run.sh runs them.
#   tests/kernels/bundle.sh OUT [BUILD_DIR]
#   OUT/run.sh [THREADS...]     default: all CPUs, then 2
set -euo pipefail

die() { printf 'bundle.sh: %s\n' "$*" >&2; exit 1; }
[[ $# -ge 1 && $# -le 2 ]] || die "usage: bundle.sh OUT [BUILD_DIR]"
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)
out=$1
bin=${2:-$root/build/release}/bin

programs=(kernels_expert_test kernels_packed_int_test kernels_packed_bf16_nf4_test
  expert_bench generator_bench call_overhead_bench)
[[ ! -e $out ]] || die "$out exists"
"$root/tests/copy_programs.sh" "$out" "$bin" "${programs[@]}"

cat >"$out/run.sh" <<'RUN'
#!/usr/bin/env bash
# Kernel tests, then the benchmarks with each number of threads; results on stdout. 2 to 4 minutes.
set -uo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"
export LD_LIBRARY_PATH=$PWD/lib
failed=0
lscpu | grep -E '^(Model name|CPU\(s\)|L2|L3)'
for test in bin/kernels_*_test; do
  # Tests of a program in parallel: they are many and short.
  log=$(mktemp)
  seq 0 $(($(nproc) - 1)) | GTEST_TOTAL_SHARDS=$(nproc) xargs -P 0 -I{} \
    env GTEST_SHARD_INDEX={} "$test" --gtest_brief=1 >"$log" 2>&1 || { failed=1; cat "$log"; }
  printf '%s: %s tests passed\n' "$test" "$(awk '/PASSED/ { n += $4 } END { print n + 0 }' "$log")"
  rm -f "$log"
done
[[ $# -gt 0 ]] || set -- "$(nproc)" 2
for threads; do
  printf '\n%s threads\n' "$threads"
  cpus=(taskset -c "0-$((threads - 1))")
  "${cpus[@]}" bin/generator_bench "$threads"
  "${cpus[@]}" bin/call_overhead_bench "$threads"
  "${cpus[@]}" bin/expert_bench --threads="$threads" --memory=6 --benchmark_min_time=0.1 \
    ${BANYAN_BENCH_ARGS:-} 2>/dev/null | grep -E '/rows|registers' |
    sed -E 's/\/manual_time +/ /; s/ +/ /g'
done
exit "$failed"
RUN
chmod +x "$out/run.sh"
printf '%s: %s MiB, run %s/run.sh\n' "$out" "$(du -sm "$out" | cut -f1)" "$out"
