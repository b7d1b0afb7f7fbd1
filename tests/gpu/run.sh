#!/usr/bin/env bash
# All GPU tests and benchmarks in one go, from a bundle (bundle.sh) or from a build:
#   run.sh [--log_dir DIR] [tests|golden|eval|sanitizer|ops|step|small|parallel|serve_parallel ...]
# Without a list: all but `small`, those of `step` that take little memory, and the last two, which want two
# GPUs or more and NCCL (libnccl.so.2 where LD_LIBRARY_PATH says).
# tests: operations against doubles and against the CPU; golden: the small models layer by layer, demo
# model, exactness, with f32 to the experts, and the demo model with bf16; eval: the demo model's
# questions and perplexity with every format of weights, cache, rows to the experts and pool; sanitizer: memcheck and racecheck of some of these; ops, step: cuda_bench; parallel: NCCL, the
# small models and the demo model on several GPUs, and steps on one and on more; serve_parallel: the demo
# model's questions to a server on two GPUs.
# Ends with one line per part and exit code 1 if one failed.
set -uo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/gpu/common.sh
. "$here/common.sh"
find_programs "$here"
if [[ -d $here/bin && -z ${BANYAN_TEST_SOURCE_DIR:-} ]]; then
  BANYAN_TEST_SOURCE_DIR=$(mktemp -d)
  export BANYAN_TEST_SOURCE_DIR
  trap 'rm -rf "$BANYAN_TEST_SOURCE_DIR"' EXIT
  tar -C "$BANYAN_TEST_SOURCE_DIR" -xJf "$here/data.tar.xz"
fi

log_dir=.
if [[ ${1:-} == --log_dir ]]; then
  log_dir=$2
  shift 2
fi
parts=("$@")
[[ ${#parts[@]} -gt 0 ]] || parts=(tests golden sanitizer ops step)
[[ ! -x $bin/banyan-trunk || ${#} -gt 0 ]] || parts=(tests golden eval sanitizer ops step)

summary=()
failed=0
# run NAME COMMAND...: output to a log, its end shown where it failed.
run() {
  local name=$1 begin=$SECONDS status=ok
  shift
  if ! "$@" >"$log_dir/$name.log" 2>&1; then
    status=FAILED
    failed=1
    grep -E 'FAILED|Failure|CHECK|========= (Invalid|Error|Race|ERROR)' -A 8 "$log_dir/$name.log" |
      head -n 80
    tail -n 5 "$log_dir/$name.log"
  fi
  summary+=("$(printf '%-22s %-6s %4d s  %s' "$name" "$status" $((SECONDS - begin)) \
    "$(grep -E '^\[  (PASSED|FAILED)  \] [0-9]+ test|ERROR SUMMARY|RACECHECK SUMMARY' \
      "$log_dir/$name.log" | tail -n 2 | tr '\n' ' ')")")
}

# evaluate TRUNK_FORMAT KV_FORMAT EXPERT_ACTIVATIONS POOL_FORMAT CONCURRENCY [GPUS [LONG_PROMPT_TOKENS]]: 214 of 214 and a
# perplexity of at most 1.1070. NF4 is not cut within the width of the demo model's experts.
# shellcheck disable=SC2317
evaluate() {
  local work pid code=1 split=width
  local demo=${BANYAN_TEST_SOURCE_DIR:-$here/../..}/deploy/models/demo
  [[ $4 != nf4 ]] || split=experts
  work=$(mktemp -d)
  "$bin/banyan" serve --model "$demo" --shards 2 --split "$split" --pool_format "$4" --pool_dir "$work/packs" --listen "unix:$work/trunk" --metrics_listen "" \
    --run_dir "$work" --log_file "$work/log" -- --backend cuda --trunk_format "$1" \
    --kv_format "$2" --expert_activations "$3" --tensor_parallel "${6:-1}" --long_prompt_tokens "${7:-512}" &
  pid=$!
  if "$bin/banyan" status --server "unix:$work/trunk" --wait 60 --health; then
    "$bin/banyan" bench --server "unix:$work/trunk" --eval "$demo/eval.json" --concurrency "$5" \
      --output json >"$work/eval.json" && code=0
    cat "$work/eval.json"
    python3 - "$work/eval.json" <<'END' || code=1
import json, sys
text = json.dumps(json.load(open(sys.argv[1])))
found = json.loads(text)
print('exact', found.get('exact'), 'perplexity', found.get('perplexity'))
sys.exit(0 if found['exact'] == 214 and found['perplexity'] <= 1.1070 else 1)
END
  fi
  [[ $code -eq 0 ]] || tail -n 20 "$work/log"
  kill "$pid"
  wait "$pid" || true
  rm -rf "$work"
  return "$code"
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true
for part in "${parts[@]}"; do
  case $part in
    tests)
      run trunk_ops_test "$bin/trunk_ops_test" --gtest_filter='*cuda*'
      run cuda_ops_test "$bin/cuda_ops_test"
      ;;
    golden)
      run golden_layers "$bin/golden_model_test" --gtest_filter='*LayersTest*cuda*'
      BANYAN_TEST_BACKEND=cuda run golden_cuda "$bin/golden_model_test" \
        --gtest_filter='-*LayersTest*'
      BANYAN_TEST_BACKEND=cuda BANYAN_TEST_EXPERT_ACTIVATIONS=bf16 run golden_cuda_bf16_rows \
        "$bin/golden_model_test" --gtest_filter='*DemoModelTest*:*NeighboursMakeNoDifference*'
      BANYAN_TEST_BACKEND=cuda run decoder_rows "$bin/trunk_model_test" \
        --gtest_filter='DecoderTest.RowsReach*'
      ;;
    eval)
      for formats in 'bf16 f32 f32 auto 1' 'bf16 bf16 f32 auto 16' 'int8 bf16 f32 auto 16' \
        'bf16 f32 bf16 auto 1' 'bf16 bf16 auto auto 1' 'bf16 bf16 auto auto 16' 'int8 f32 bf16 auto 1' \
        'int8 bf16 auto auto 1' 'int8 bf16 auto auto 16' 'bf16 bf16 auto int8 16' \
        'bf16 bf16 auto int4 16' 'bf16 bf16 auto nf4 16' 'bf16 bf16 auto int8 16 1 1' \
        'bf16 bf16 auto int4 16 1 1' 'bf16 bf16 auto nf4 1 1 1'; do
        # shellcheck disable=SC2086
        run "eval_${formats// /_}" evaluate $formats
        grep -h '^exact' "$log_dir/eval_${formats// /_}.log"
      done
      ;;
    sanitizer)
      if ! command -v compute-sanitizer >/dev/null; then
        summary+=("sanitizer              not run: no compute-sanitizer")
        continue
      fi
      for tool in memcheck racecheck; do
        run "sanitizer_$tool" timeout 300 compute-sanitizer --tool "$tool" --error-exitcode 1 \
          "$bin/trunk_ops_test" --gtest_filter='*AgreesWith*cuda:*Elementwise*cuda:*Router*cuda:*CutsOnTheGrid*cuda:*SeveralMatrices*cuda:*FusedTest*cuda:*CodesBeside*cuda:*CodesOfMany*cuda:*PlacesCodes*cuda:*SwigluAndProduct*cuda:*TopLogitsTest.ARowIsItsOwn*cuda:*TopLogitsTest.ExtremesAreBounded*cuda'
      done
      ;;
    parallel)
      run nccl_test timeout 90 "$bin/cuda_ops_test" --gtest_filter='*Nccl*'
      run golden_parallel timeout 90 "$bin/golden_model_test" --gtest_filter='*LayersTest*Ways_cuda*'
      BANYAN_TEST_BACKEND=cuda run demo_parallel timeout 120 "$bin/golden_model_test" \
        --gtest_filter='*DemoModelTest*/1:*GroupOfOne*'
      BANYAN_TEST_BACKEND=cuda run decoder_parallel timeout 90 "$bin/trunk_model_test" \
        --gtest_filter='ParallelDecoderTest.*'
      run cuda_bench_parallel timeout 240 "$bin/cuda_bench" parallel
      cat "$log_dir/cuda_bench_parallel.log"
      ;;
    serve_parallel)
      for formats in 'bf16 f32 f32 auto 1 2' 'bf16 bf16 auto auto 16 2' 'int8 bf16 auto auto 16 2'; do
        # shellcheck disable=SC2086
        run "eval_${formats// /_}" evaluate $formats
        grep -h '^exact' "$log_dir/eval_${formats// /_}.log"
      done
      ;;
    ops | step | small)
      run "cuda_bench_$part" "$bin/cuda_bench" "$part"
      cat "$log_dir/cuda_bench_$part.log"
      ;;
    *)
      printf 'run.sh: %s: expected tests, golden, eval, sanitizer, ops, step, small, parallel or serve_parallel\n' "$part" >&2
      exit 2
      ;;
  esac
done
printf '%s\n' "${summary[@]}"
exit $failed
