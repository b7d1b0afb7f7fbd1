#!/bin/sh
# check_format.sh CLANG_FORMAT ROOT: every source of ours is as CLANG_FORMAT would write it.
set -eu
find "$2/common" "$2/services" "$2/tests" -type f \
  \( -name '*.h' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh' -o -name '*.inc' \) -print0 |
  xargs -0 -n 64 -P 2 "$1" --dry-run -Werror --style=file
