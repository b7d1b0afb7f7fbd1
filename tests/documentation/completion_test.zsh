#!/usr/bin/env zsh
# completion_test.zsh BANYAN: a real interactive zsh in a terminal of its own completes command lines
# with the script that BANYAN prints.
emulate -L zsh
zmodload zsh/zpty || exit 1
banyan=$1
folder=$(mktemp -d) || exit 1
trap 'zpty -d shell 2>/dev/null; rm -rf -- $folder' EXIT
$banyan completion zsh >$folder/_banyan || exit 1
zsh -n $folder/_banyan || exit 1
mkdir $folder/a_model

zpty shell zsh -f -i
# await TEXT: reads what the shell shows until it holds TEXT.
await() {
  local text=$1 shown='' part
  while zpty -r shell part; do
    shown+=$part
    [[ $shown != *$text* ]] || return 0
  done
  print -u2 -r -- "the shell ended; it showed: $shown"
  exit 1
}
send() { zpty -w shell "$1" }
send "PS1= PS2= RPS1=; cd $folder"
send "fpath=($folder \$fpath); autoload -Uz compinit && compinit -u -D"
# The line is completed, then printed instead of run.
send 'show() { zle expand-or-complete; print -r -- "<$BUFFER>"; BUFFER=; zle .accept-line }'
send 'zle -N show; bindkey "^T" show; print re""ady'
await ready

expect() {
  zpty -w -n shell "$2"$'\x14'
  await "<$1>"
}
expect 'banyan serve ' 'banyan se'
expect 'banyan serve --shards=' 'banyan serve --sha'
expect 'banyan serve --split=width ' 'banyan serve --split=w'
expect 'banyan generate --output json ' 'banyan generate --output j'
expect 'banyan serve --model a_model/' 'banyan serve --model a'
expect 'banyan completion zsh ' 'banyan completion z'
expect 'banyan status --watch=' 'banyan status --wat'
print 'completion_test passed'
