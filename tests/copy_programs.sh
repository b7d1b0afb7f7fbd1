#!/usr/bin/env bash
# copy_programs.sh OUT BIN_DIR PROGRAM...: programs, stripped, into OUT/bin, and the shared libraries they need
# into OUT/lib, but for what glibc brings: that belongs to the machine they will run on.
set -euo pipefail

out=$1 bin=$2
shift 2
mkdir -p "$out/bin" "$out/lib"
for program; do
  [[ -x $bin/$program ]] || { printf '%s: %s/%s: not built\n' "$0" "$bin" "$program" >&2; exit 1; }
  cp "$bin/$program" "$out/bin/"
  strip "$out/bin/$program"
  while read -r library; do
    cp -n "$library" "$out/lib/"
  done < <(ldd "$bin/$program" | awk '$3 ~ /^\// { print $3 }' |
    grep -Ev '/(libc|libm|libpthread|libdl|librt|ld-linux[^/]*)\.so')
done
