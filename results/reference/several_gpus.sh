#!/usr/bin/env bash
# How several_gpus.csv is measured:  results/reference/several_gpus.sh GPUS FOLDER
#
# Runs in the folder that holds the package `benchmark`, on a host with so many GPUs. What matters most comes first; each
# part has a limit of its own, and every row is in FOLDER as soon as it is known. The first part compiles all kernels while
# the tests run, which leave the GPUs nearly idle; it is not timed. In a copy without git, HLLM_BENCH_REVISION names the
# commit. UNTIL (Unix seconds): start no part that would end later. METHOD, SHAPE and DEVICE: to try it on a processor.
set -u
gpus=$1 out=$2
method=${METHOD:-hllm-1b} shape=${SHAPE:-books-global} device=${DEVICE:-auto} python=${PYTHON:-python3}
export NCCL_NVLS_ENABLE=0 PYTHONUNBUFFERED=1
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-/tmp/hllm-bench-kernels}
mkdir -p "$out"

part() {  # SECONDS NAME COMMAND...
  local limit=$1 name=$2 began=$SECONDS status
  shift 2
  if [ -n "${UNTIL:-}" ] && [ $(($(date +%s) + limit)) -gt "$UNTIL" ]; then
    echo "$name: left out, it may take $limit s"
    return
  fi
  timeout --kill-after=5 "$limit" "$@" > "$out/$name.log" 2>&1
  status=$?
  echo "$name: status $status, $began to $SECONDS s"
}
speed() {  # SECONDS NAME OPTIONS...
  local limit=$1 name=$2
  shift 2
  part "$limit" "$name" "$python" -m benchmark speed --processes "$gpus" --device "$device" --method "$method" "$@"
}
rows() {  # SECONDS NAME OPTIONS...
  speed "$@" --out "$out/several_gpus.csv"
}

# torchrun, and not the verb, starts the processes here: the verb would hold the GPUs that the tests wait for.
part 120 kernels "$python" -m torch.distributed.run --standalone --nproc-per-node "$gpus" --module benchmark speed \
  --processes "$gpus" --device "$device" --method "$method" --shape "$shape" --parts train,encode,rank --engines single \
  --item-chunk 64 --warmup 1 --steps 1 --pieces 2 &
part 120 tests "$python" -m pytest -q -m gpu tests/training/test_distributed.py &
part 240 lost "$python" -m pytest -q -s -m gpu tests/training/test_lost_process.py &
wait
rows 190 whole --shape "$shape" --parts train,encode,rank --engines single,ddp --warmup 2 --steps 3 --pieces 72
rows 85 zero2 --shape "$shape" --parts train --engines zero2 --warmup 2 --steps 3
rows 120 zero3 --shape "$shape" --parts train --engines zero3 --warmup 2 --steps 3
rows 75 many --shape "${MANY:-books-28k}" --parts train --engines single,ddp --warmup 2 --steps 3
