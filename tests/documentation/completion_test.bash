#!/usr/bin/env bash
# completion_test.bash BANYAN: what bash offers for a command line, by the script that BANYAN prints.
set -euo pipefail

banyan=$1
folder=$(mktemp -d)
trap 'rm -rf -- "$folder"' EXIT
mkdir -- "$folder/a model" "$folder/models"
touch -- "$folder/memo.json"
cd -- "$folder"

script=$("$banyan" completion bash)
bash --norc -n <<<"$script"
eval "$script"
[[ $(complete -p banyan) == 'complete -F _banyan banyan' ]]

failures=0
# expect "WORD..." "EXPECTED..." : the words of the line, the last one under the cursor ('' when a
# new one begins), and what is offered, sorted and joined by "|".
expect() {
  local expected=$1 found
  shift
  COMP_WORDS=(banyan "$@")
  COMP_CWORD=$#
  COMPREPLY=()
  _banyan
  found=$(printf '%s\n' "${COMPREPLY[@]}" | sort | paste -sd '|')
  if [[ $found != "$expected" ]]; then
    printf 'banyan %s\n  expected %s\n  found    %s\n' "$*" "$expected" "$found" >&2
    failures=$((failures + 1))
  fi
}

# The same words by another road: the help's own lines.
verbs=$("$banyan" --help | sed -n '/^Subcommands:/,$s/^  \([a-z]\+\) .*/\1/p')
options_of() {
  "$banyan" "$1" --help | sed -n 's/^  \(-[^ ]*\).*/\1/p' | tr ',' '\n'
}

[[ $(wc -l <<<"$verbs") -ge 7 ]]
expect "$(printf '%s\n' -h --help --version "$verbs" | sort | paste -sd '|')" ''
for verb in $verbs; do
  expect "$(options_of "$verb" | sort | paste -sd '|')" "$verb" -
done

expect serve se
expect '--seed|--server|--stats|--stop|--stop_token_id|--system' chat --s
expect 'json|text' generate --output ''
expect json generate --output j
expect json generate --output = j
expect 'json|text' generate --output =
expect 'experts|width' serve --model /x --split ''
expect 'a model|models' serve --model ''
expect 'a model' serve --model 'a '
expect 'a model|memo.json|models' serve --log_file ''
expect 'memo.json|models' bench --eval m
expect '' generate --temperature ''
expect --expert_activations serve --model /x --expert_a
expect '' serve --model /x -- --exp
expect '--help|--version|-h|bash|zsh' completion ''
expect '' no_such_verb --out
# A value that looks like a verb is none.
expect 'json|text' bench --server serve --output ''

((failures == 0)) || exit 1
echo "completion_test passed"
