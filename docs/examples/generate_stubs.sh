#!/bin/sh
# generate_stubs.sh DIR: Python stubs of Banyan's public interface, written below DIR.
# Needs Debian's protobuf-compiler and protobuf-compiler-grpc; the stubs need python3-grpcio and
# python3-protobuf.
set -eu

[ $# -eq 1 ] || { echo "usage: generate_stubs.sh DIR" >&2; exit 2; }
root=$(cd -- "$(dirname -- "$0")/../.." && pwd)
plugin=$(command -v grpc_python_plugin) || {
  echo "generate_stubs.sh: no grpc_python_plugin (Debian package protobuf-compiler-grpc)" >&2
  exit 1
}

mkdir -p -- "$1"
protoc -I "$root" --python_out="$1" --grpc_out="$1" --plugin=protoc-gen-grpc="$plugin" \
  "$root/proto/common/v1/load.proto" "$root/proto/inference/v1/inference.proto"
# A package of its own: any other `proto` that is installed would come before one without this.
for folder in proto proto/common proto/common/v1 proto/inference proto/inference/v1; do
  : >"$1/$folder/__init__.py"
done
