#!/usr/bin/env bash
# Packs the GPU tests and benchmarks into one folder that runs on a machine with an NVIDIA driver and
# nothing of ours: programs, the shared libraries they need beyond glibc's own, test data, run.sh.
#   tests/gpu/bundle.sh [--no_data] [--serve] OUT [BUILD_DIR]
# --serve: with the servers and their client, for run.sh eval, serve.sh and in_turn.sh. --no_data: the
# machine has a checkout; run.sh is then told where: BANYAN_TEST_SOURCE_DIR. The first run unpacks the programs.
set -euo pipefail

die() { printf 'bundle.sh: %s\n' "$*" >&2; exit 1; }
data=yes
serve=no
while [[ ${1:-} == --* ]]; do
  case $1 in
    --no_data) data=no ;;
    --serve) serve=yes ;;
    *) die "$1: unknown" ;;
  esac
  shift
done
[[ $# -ge 1 && $# -le 2 ]] || die "usage: bundle.sh [--no_data] [--serve] OUT [BUILD_DIR]"
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)
out=$1
bin=${2:-$root/build/release}/bin
most_mib=40

programs=(trunk_ops_test trunk_model_test cuda_ops_test golden_model_test cuda_bench)
if [[ $serve == yes ]]; then
  programs+=(banyan-trunk banyan-expert banyan)
  most_mib=64
fi
[[ ! -e $out ]] || die "$out exists"
"$root/tests/copy_programs.sh" "$out" "$bin" "${programs[@]}"
if [[ $data == yes ]]; then
  tar -C "$root" -cf - tests/data/tiny tests/data/tiny-fused tests/data/tiny-nf4 tests/data/tiny-nf4-single \
    tests/data/tiny-int8 tests/data/tiny-fp8 deploy/models/demo |
    xz -T 0 >"$out/data.tar.xz"
fi
tar -C "$out" -cf - bin lib | xz -T 0 >"$out/programs.tar.xz"
rm -rf "${out:?}/bin" "${out:?}/lib"
for script in run serve in_turn common; do cp "$root/tests/gpu/$script.sh" "$out/"; done

mib=$(du -sm "$out" | cut -f1)
[[ $mib -le $most_mib ]] || die "$out: $mib MiB, at most $most_mib"
printf '%s: %s MiB, run %s/run.sh on the GPU machine\n' "$out" "$mib" "$out"
