#!/bin/sh
# check_build_stage.sh ROOT: the images' build stages are the same text, so that the engine's cache runs it once.
set -eu
stage() { sed -n '/^ARG BASE=/,/^# end of the stage that both images share$/p' "$1"; }
trunk=$(stage "$1/docker/trunk.Dockerfile")
expert=$(stage "$1/docker/expert.Dockerfile")
if [ -z "$trunk" ] || [ "$trunk" != "$expert" ]; then
  echo "docker/trunk.Dockerfile and docker/expert.Dockerfile: their build stages differ" >&2
  exit 1
fi
