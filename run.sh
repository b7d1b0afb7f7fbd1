#!/usr/bin/env bash
# Banyan from a fresh clone on Debian 12: ./run.sh help
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
bin="$here/build/release/bin"
state=${BANYAN_STATE_DIR:-$here/run}

# Paths inside the tree are hashed relative to it: a second clone takes what the first one compiled.
export CCACHE_BASEDIR=$here CCACHE_NOHASHDIR=1

# Debian packages: what the programs need to be built, and what the tests need beyond that.
build_packages=(
  g++ cmake ninja-build pkg-config
  protobuf-compiler protobuf-compiler-grpc libprotobuf-dev libgrpc++-dev libabsl-dev
  libfmt-dev libspdlog-dev nlohmann-json3-dev prometheus-cpp-dev libcli11-dev
  libicu-dev libxxhash-dev libedit-dev libhwy-dev
)
test_packages=(
  ccache libgtest-dev libgmock-dev libbenchmark-dev
  clang-format-14 shellcheck python3 python3-grpcio python3-protobuf prometheus
  systemd python3-seccomp mandoc zsh
  python3-jsonschema python3-yaml python3-prometheus-client
)

usage() {
  cat <<'TEXT'
usage: ./run.sh COMMAND

  demo [--listen ADDR] [--metrics_listen ADDR]
                   set up, build, start one trunk and two experts on the bundled demo model
                   and let it answer a question
  serve [--model DIR] [...]
                   the same for a checkpoint of yours, in the foreground; Ctrl-C ends it
                   (further options: banyan serve --help); log in server.log
  stop             end what demo and serve started
  build            set up and build the programs
  test [--preset release|asan|tsan]
                   build everything and run every test
  packages build|test
                   name the Debian packages that building needs, or that the tests need beyond them

Missing Debian packages are installed (as root or with sudo).
TEXT
}

say() { printf '%s\n' "$*"; }
die() { printf 'run.sh: %s\n' "$*" >&2; exit 1; }
usage_error() { printf 'run.sh: %s (see ./run.sh help)\n' "$*" >&2; exit 2; }

# --- set-up ------------------------------------------------------------------------------------

install_missing() {
  command -v dpkg-query >/dev/null || die "this is no Debian: install by hand: $*"
  local package status missing=()
  for package in "$@"; do
    status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
    [[ $status == installed ]] || missing+=("$package")
  done
  [[ ${#missing[@]} -gt 0 ]] || return 0
  say "Installing Debian packages: ${missing[*]}"
  local as_root=()
  if [[ $(id -u) -ne 0 ]]; then
    command -v sudo >/dev/null || die "needs root or sudo to install: ${missing[*]}"
    as_root=(sudo)
  fi
  mkdir -p -- "$state"
  local log=$state/apt.log
  if ! { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q update &&
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
      apt-get -q install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 </dev/null; then
    tail -n 15 -- "$log" >&2
    die "apt-get failed (whole log: $log)"
  fi
}

# Compilers of gRPC code take about 1.5 GB each.
build_jobs() {
  local cpus memory_kb by_memory
  cpus=$(nproc)
  memory_kb=$(awk '/^MemAvailable:/ {print $2}' /proc/meminfo)
  by_memory=$((memory_kb / 1500000))
  ((by_memory >= 1)) || by_memory=1
  say $((cpus < by_memory ? cpus : by_memory))
}

# configure PRESET [-DNAME=VALUE ...]
configure() {
  local preset=$1 launcher=()
  shift
  command -v ccache >/dev/null || launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=)
  mkdir -p -- "$here/build"
  local log=$here/build/configure-$preset.log
  say "Configuring (preset $preset)"
  if ! (cd -- "$here" && cmake --preset "$preset" "${launcher[@]}" "$@") >"$log" 2>&1; then
    tail -n 25 -- "$log" >&2
    die "cmake failed (whole log: $log)"
  fi
}

# compile PRESET [cmake --build options]: quiet when there is nothing to do or everything is well.
compile() {
  local preset=$1 build=(cmake --build "$here/build/$1" --parallel "$(build_jobs)")
  shift
  local log=$here/build/build-$preset.log
  if [[ -t 1 ]]; then
    "${build[@]}" "$@" 2>&1 | tee -- "$log" | show_steps || build_failed "$log"
  else
    # A pulse for those who read a log: one line per tenth.
    "${build[@]}" "$@" 2>&1 | tee -- "$log" | awk -F'[][/]' '
      /^\[[0-9]+\/[0-9]+\]/ { t = int(10 * $2 / $3); if (t > last) { last = t; print "  built " $2 " of " $3; fflush() } }' \
      || build_failed "$log"
  fi
}

show_steps() {
  awk '/^\[[0-9]+\/[0-9]+\]/ { printf "\r\033[K%.78s", $0; fflush(); shown = 1 } END { if (shown) printf "\r\033[K" }'
}

build_failed() {
  grep -E -A12 'error|FAILED|undefined reference' -- "$1" | head -n 60 >&2 || tail -n 40 -- "$1" >&2
  die "the build failed (whole log: $1)"
}

build_programs() {
  install_missing "${build_packages[@]}"
  # A tree that was set up for tests stays so.
  [[ -f $here/build/release/build.ninja ]] ||
    configure release -DBANYAN_BUILD_TESTS=OFF -DBANYAN_BUILD_BENCHMARKS=OFF
  [[ -x $bin/banyan && -x $bin/banyan-trunk && -x $bin/banyan-expert ]] ||
    say "Building (the first time takes some minutes)"
  compile release --target banyan banyan-trunk banyan-expert
}

# --- what runs ---------------------------------------------------------------------------------

# The kernel's start time of a process: with the pid it names one process for ever.
start_time() {
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  stat=${stat##*) }  # the command may hold spaces and brackets
  local fields
  read -r -a fields <<<"$stat"
  [[ ${fields[0]} != Z ]] || return 1
  say "${fields[19]}"
}

# record NAME PID ADDRESS METRICS
record() {
  mkdir -p -- "$state"
  printf '%s %s %s %s\n' "$2" "$(start_time "$2")" "$3" "$4" >"$state/$1.pid.part"
  mv -- "$state/$1.pid.part" "$state/$1.pid"
}

# Sets recorded_{pid,address,metrics} when the process that was recorded under NAME still lives.
alive() {
  local since
  [[ -f $state/$1.pid ]] || return 1
  read -r recorded_pid since recorded_address recorded_metrics <"$state/$1.pid" || return 1
  [[ $(start_time "$recorded_pid" || true) == "$since" ]]
}

stop_one() {
  if alive "$1"; then
    kill -TERM "$recorded_pid"
    local waited=0
    while alive "$1" && ((waited < 400)); do
      sleep 0.1
      waited=$((waited + 1))
    done
    if alive "$1"; then
      kill -KILL "$recorded_pid"
      say "$1 (pid $recorded_pid) did not end in 40 s: killed"
    else
      say "$1 (pid $recorded_pid) ended"
    fi
    stopped=yes
  fi
  rm -f -- "$state/$1.pid"
}

command_stop() {
  [[ $# -eq 0 ]] || usage_error "stop takes no options"
  local stopped=no
  stop_one demo
  stop_one serve
  [[ $stopped == yes ]] || say "nothing to stop"
}

command_demo() {
  local listen=127.0.0.1:50051 metrics=127.0.0.1:9101
  while [[ $# -gt 0 ]]; do
    case $1 in
      --listen) listen=${2:?--listen needs an address} && shift 2 ;;
      --metrics_listen) metrics=${2:?--metrics_listen needs an address} && shift 2 ;;
      *) usage_error "demo: unknown option $1" ;;
    esac
  done
  build_programs
  if alive demo; then
    listen=$recorded_address
    metrics=$recorded_metrics
    say "The demo already runs (pid $recorded_pid)"
  else
    start_demo
  fi
  "$bin/banyan" status --server "$listen" --wait 60 --metrics "" >/dev/null ||
    die "the demo does not answer (log: $state/server.log; end it with ./run.sh stop)"

  local server=()
  [[ $listen == 127.0.0.1:50051 ]] || server=(--server "$listen")
  local question="What is the capital of Japan?"
  say ""
  say "> $question"
  "$bin/banyan" generate --chat --stream --stats --temperature 0 --server "$listen" "$question"
  say ""
  say "Go on:"
  say "  talk with it              build/release/bin/banyan chat${server[*]:+ ${server[*]}}"
  say "  look at it                build/release/bin/banyan status${server[*]:+ ${server[*]}}"
  say "  serve your own checkpoint ./run.sh serve --model DIR"
  say "  metrics                   http://$metrics/metrics"
  say "  end it                    ./run.sh stop"
}

start_demo() {
  mkdir -p -- "$state"
  say "Starting one trunk and two experts (log: $state/server.log)"
  local output=$state/serve.out
  setsid "$bin/banyan" serve --model "$here/deploy/models/demo" --shards 2 \
    --listen "$listen" --metrics_listen "$metrics" --log_file "$state/server.log" \
    >"$output" 2>&1 </dev/null &
  local pid=$!
  disown
  record demo "$pid" "$listen" "$metrics"
  # Its own lines while it loads; whether it answers is asked of the trunk afterwards.
  while alive demo && ! grep -q '^ready: ' -- "$output"; do sleep 0.05; done
  if ! alive demo; then
    rm -f -- "$state/demo.pid"
    sed 's/^/  /' -- "$output" >&2
    die "the demo did not start"
  fi
}

command_serve() {
  local arg defaults=(--model "$here/deploy/models/demo" --log_file "$here/server.log")
  for arg in "$@"; do
    case $arg in
      --help | -h | --version) build_programs && exec "$bin/banyan" serve "$@" ;;
    esac
  done
  [[ " $*" != *" --model"* ]] || defaults=("${defaults[@]:2}")
  [[ " $*" != *" --log_file"* ]] || defaults=("${defaults[@]:0:${#defaults[@]}-2}")
  build_programs
  ! alive serve || die "already serving (pid $recorded_pid): ./run.sh stop ends it"
  # exec keeps the pid: what is recorded here is the supervisor.
  record serve "$$" - -
  exec "$bin/banyan" serve "${defaults[@]}" "$@"
}

# --- tests -------------------------------------------------------------------------------------

command_test() {
  local preset=release
  while [[ $# -gt 0 ]]; do
    case $1 in
      --preset) preset=${2:?--preset needs a name} && shift 2 ;;
      *) usage_error "test: unknown option $1" ;;
    esac
  done
  [[ $preset =~ ^(release|debug|asan|tsan)$ ]] || usage_error "test: no preset $preset"
  install_missing "${build_packages[@]}" "${test_packages[@]}"
  local benchmarks=OFF
  [[ $preset != release ]] || benchmarks=ON
  configure "$preset" -DBANYAN_BUILD_TESTS=ON -DBANYAN_BUILD_BENCHMARKS=$benchmarks
  say "Building everything"
  compile "$preset"

  # Unit tests side by side; what measures time or starts several processes, one after the other.
  local tree=$here/build/$preset failed=0
  rm -f -- "$tree"/tests-*.log
  ctest --test-dir "$tree" --output-on-failure -L unit -j "$(nproc)" 2>&1 |
    tee -- "$tree/tests-unit.log" || failed=1
  ctest --test-dir "$tree" --output-on-failure -LE unit 2>&1 |
    tee -- "$tree/tests-other.log" || failed=1
  summarise "$tree" "$failed"
}

# Counts from ctest's last lines ("95% tests passed, 1 tests failed out of 20").
summarise() {
  local tree=$1 failed_runs=$2 passed=0 failed=0 line log
  for log in "$tree"/tests-unit.log "$tree"/tests-other.log; do
    line=$(grep -E 'tests? failed out of [0-9]+' -- "$log" | tail -n 1 || true)
    [[ $line =~ ([0-9]+)\ tests?\ failed\ out\ of\ ([0-9]+) ]] ||
      die "ctest said nothing about its tests (log: $log)"
    failed=$((failed + BASH_REMATCH[1]))
    passed=$((passed + BASH_REMATCH[2] - BASH_REMATCH[1]))
  done
  if [[ -s $tree/unregistered-tests.txt ]]; then
    say "not registered (${tree##*/}):"
    sed 's/^/  /' -- "$tree/unregistered-tests.txt"
  fi
  say "$passed passed, $failed failed"
  ((failed == 0 && failed_runs == 0))
}

command_packages() {
  case $* in
    build) printf '%s\n' "${build_packages[@]}" ;;
    test) printf '%s\n' "${test_packages[@]}" ;;
    *) usage_error "packages: expected build or test" ;;
  esac
}

command=${1:-help}
[[ $# -eq 0 ]] || shift
case $command in
  demo | serve | stop | test | packages) "command_$command" "$@" ;;
  build)
    [[ $# -eq 0 ]] || usage_error "build takes no options"
    build_programs
    say "Built: $bin/banyan, banyan-trunk, banyan-expert"
    ;;
  help | --help | -h) usage ;;
  *) usage_error "unknown command $command" ;;
esac
