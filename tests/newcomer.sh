#!/usr/bin/env bash
# newcomer.sh REPOSITORY: the README's quick start, from nothing.
#
# Clones REPOSITORY (a path or URL) into a new folder and runs what the README shows in its blocks
# marked `sh`, line by line, in order: README and trial cannot drift. Meant for a bare Debian 12 (a
# container or chroot) with git and apt as root; it compiles everything (some 15 minutes on 2 cores).
# The checkpoint "of yours" is a copy of the demo model elsewhere. Exit code 0: every line ended with
# 0 and every line of `expected` below was met.
#
# newcomer.sh --in_place: in this tree, with what is built already.
set -euo pipefail

# What part of a command, and what its output must hold.
expected=(
  'run.sh demo'            'The capital of Japan is Tokyo'
  'banyan status'          'serving'
  'banyan top --once'      'tokens .*/s out'
  'Spell the word river'   'r-i-v-e-r|r i v e r|R-I-V-E-R'
  'bench --concurrency 8'  'tokens'
  'bench --eval'           '214 of 214'
  'banyan status --wait'   'serving'
  'generate --chat "What'  'Tokyo'
  'examples/chat.py'       'Paris'
  'chat_by_reflection.py'  'Rome'
  ':9101/metrics'          'banyan_trunk_generated_tokens_total [1-9]'
  ':9111/metrics'          'banyan_expert_weight_bytes_total [1-9]'
)

die() { printf 'newcomer.sh: %s\n' "$*" >&2; exit 1; }

[[ $# -eq 1 ]] || die "usage: newcomer.sh REPOSITORY | --in_place"
folder=$(mktemp -d)
if [[ $1 == --in_place ]]; then
  cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
else
  git clone --quiet -- "$1" "$folder/banyan"
  cd -- "$folder/banyan"
fi
export MODEL_DIR="$folder/a model"
cp -R -- deploy/models/demo "$MODEL_DIR"

# A bare container has no sudo and its root needs none.
if ! command -v sudo >/dev/null; then
  sudo() { env "$@"; }
fi

serving=
finish() {
  ./run.sh stop >/dev/null 2>&1 || true
  [[ -z $serving ]] || wait "$serving" || true
  rm -rf -- "$folder"
}
trap finish EXIT

mapfile -t commands < <(awk '/^```/ { inside = $0 == "```sh"; next } inside' README.md)
[[ ${#commands[@]} -ge 10 ]] || die "README.md has only ${#commands[@]} lines in blocks marked sh"

declare -A met=()
begin=$SECONDS
for command in "${commands[@]}"; do
  printf '\n$ %s\n' "$command"
  if [[ $command == './run.sh serve'* ]]; then
    # The one that stays in the foreground: "from another terminal" comes next.
    eval "$command" >"$folder/serve.out" 2>&1 </dev/null &
    serving=$!
    continue
  fi
  code=0
  eval "$command" >"$folder/output" 2>&1 </dev/null || code=$?
  cat -- "$folder/output"
  if ((code != 0)); then
    [[ ! -f $folder/serve.out ]] || cat -- "$folder/serve.out" >&2
    die "exit code $code: $command"
  fi
  for ((i = 0; i < ${#expected[@]}; i += 2)); do
    [[ $command == *"${expected[i]}"* ]] || continue
    grep -qE -- "${expected[i + 1]}" "$folder/output" ||
      die "expected '${expected[i + 1]}' of: $command"
    met[$i]=yes
  done
done
for ((i = 0; i < ${#expected[@]}; i += 2)); do
  [[ -n ${met[$i]:-} ]] || die "README.md no longer shows '${expected[i]}'"
done
printf '\nevery step of the quick start works (%d commands, %d s)\n' "${#commands[@]}" $((SECONDS - begin))
