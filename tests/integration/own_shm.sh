#!/bin/sh
# Runs a program with a /dev/shm of its own, of that size at most, which nobody else sees.
#   own_shm.sh SIZE PROGRAM ARGUMENTS...
set -eu
size=$1
shift
# shellcheck disable=SC2016  # the inner shell expands them
exec unshare --map-root-user --mount sh -c \
  'size=$1; shift; mount -t tmpfs -o "size=$size" tmpfs /dev/shm; exec "$@"' sh "$size" "$@"
