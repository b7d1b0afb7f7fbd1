#!/usr/bin/env bash
# Packs the GPU tests and benchmarks into one folder that runs on a machine with an NVIDIA driver and
# nothing of ours: programs, the shared libraries they need beyond glibc's own, test data, run.sh.
#   tests/gpu/bundle.sh [--no_data] OUT [BUILD_DIR]
# --no_data: the machine has a checkout; run.sh is then told where: BANYAN_TEST_SOURCE_DIR.
set -euo pipefail

die() { printf 'bundle.sh: %s\n' "$*" >&2; exit 1; }
data=yes
if [[ ${1:-} == --no_data ]]; then
  data=no
  shift
fi
[[ $# -ge 1 && $# -le 2 ]] || die "usage: bundle.sh [--no_data] OUT [BUILD_DIR]"
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)
out=$1
bin=${2:-$root/build/release}/bin
most_mib=40

programs=(trunk_ops_test cuda_ops_test golden_model_test cuda_bench
  banyan-trunk banyan-expert banyan)
[[ ! -e $out ]] || die "$out exists"
mkdir -p "$out/bin" "$out/lib"

for program in "${programs[@]}"; do
  [[ -x $bin/$program ]] || die "$bin/$program: not built (cmake --build with BANYAN_ENABLE_CUDA)"
  cp "$bin/$program" "$out/bin/"
  strip "$out/bin/$program"
  # What glibc brings belongs to the machine; everything else travels.
  while read -r library; do
    cp -n "$library" "$out/lib/"
  done < <(ldd "$bin/$program" | awk '$3 ~ /^\// { print $3 }' |
    grep -Ev '/(libc|libm|libpthread|libdl|librt|ld-linux[^/]*)\.so')
done
if [[ $data == yes ]]; then
  tar -C "$root" -cf - tests/data/tiny tests/data/tiny-fused deploy/models/demo |
    xz -T 0 >"$out/data.tar.xz"
fi
cp "$root/tests/gpu/run.sh" "$root/tests/gpu/serve.sh" "$out/"

mib=$(du -sm "$out" | cut -f1)
[[ $mib -le $most_mib ]] || die "$out: $mib MiB, at most $most_mib"
printf '%s: %s MiB, run %s/run.sh on the GPU machine\n' "$out" "$mib" "$out"
