#!/usr/bin/env bash
# Measure on one NVIDIA GPU what docs/performance.md says about GPUs, each part in its own file.
#
#   bash benchmarks/on_gpu.sh results                        the training step against its rivals
#   bash benchmarks/on_gpu.sh results program packed         train.py itself, packed documents
#
# Parts: training, modern, autotune, accumulation, program, packed, decoding, kills, sizes, serving.
# None takes more than ten minutes: each command has a limit in seconds, below. PYTHON names the
# interpreter (default: .venv/bin/python). The rivals need torch and transformers. Exit code 1 if a
# command failed; the others are run all the same.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
results=${1:?folder for the results}
shift
parts=("$@")
((${#parts[@]})) || parts=(training)
python=${PYTHON:-.venv/bin/python}
mkdir -p "$results"
failed=0

# Run a benchmark for at most so many seconds. What it prints is shown and kept.
measure() {
    local name=$1 seconds=$2
    shift 2
    echo "== $name: $*"
    timeout "$seconds" "$python" -m "$@" 2>&1 | tee "$results/$name.txt" || {
        failed=1
        echo "$name failed or took more than $seconds s" | tee -a "$results/$name.txt"
    }
}

step="benchmarks.train_throughput --dtypes bfloat16 --rounds 3"
nvidia-smi --query-gpu=name,driver_version,power.limit --format=csv | tee "$results/card.txt"
for part in "${parts[@]}"; do
    case $part in
    training)
        # Triton's matmuls have no epilogue: without them GELU may run at the end of one. The
        # contenders of a call share the memory: about 60 GB with 32 rows, 80 GB with 64.
        measure training_32 330 $step --batch 32 --steps 20 --sustain 30 --profile \
            --xla-flags=--xla_gpu_enable_triton_gemm=false --without-kernels --only \
            ours-bfloat16-32 ours-bfloat16-32-flags ours-bfloat16-32-xla \
            plain-bfloat16-32-compile
        measure training_64 250 $step --batch 64 --steps 10 \
            --xla-flags=--xla_gpu_enable_triton_gemm=false --only \
            ours-bfloat16-64 ours-bfloat16-64-flags plain-bfloat16-64-compile
        ;;
    modern)
        # Muon works once a step: with 8 micro-batches it is the share of a long run.
        measure modern 280 $step --batch 32 --steps 20 --modern --profile --only \
            ours-bfloat16-32 ours-bfloat16-32-modern
        measure modern_accumulation 300 $step --batch 32 --steps 4 --accumulation 8 --modern \
            --only ours-bfloat16-32 ours-bfloat16-32-modern
        ;;
    autotune)
        # In a call of its own: with max-autotune, `training_64` did not end within 250 s.
        measure autotune 550 $step --batch 32 --steps 20 --autotune --only \
            ours-bfloat16-32 plain-bfloat16-32-autotune
        ;;
    accumulation)
        measure accumulation 200 $step --batch 32 --steps 4 --accumulation 8 --only ours-bfloat16-32
        measure no_accumulation 200 $step --batch 32 --steps 32 --only ours-bfloat16-32
        ;;
    program)
        measure program 300 benchmarks.train_program --steps 40
        ;;
    packed)
        measure packed_attention 120 benchmarks.packed_attention
        measure packed_attention_2048 120 benchmarks.packed_attention --rows 16 --context 2048
        measure isolated 200 $step --batch 32 --steps 20 --isolate-documents --only ours-bfloat16-32
        ;;
    decoding)
        measure decoding 250 benchmarks.decode --dtypes bfloat16 --rows 1 8 64 --rounds 3 \
            --xla-flags=--xla_gpu_enable_command_buffer=+WHILE \
            --xla-flags=--xla_gpu_enable_triton_gemm=false
        measure decoding_top_p 120 benchmarks.decode --dtypes bfloat16 --rows 1 --rounds 3 \
            --temperature 0.8 --top-p 0.95
        ;;
    kills)
        measure kills 400 benchmarks.train_program --steps 24 --kills 3 --config.data.batch=64
        ;;
    sizes)
        measure medium 250 benchmarks.train_program --steps 24 --config.data.batch=64 \
            --config configs/pretrain.py:gpt2-medium
        measure xl 300 benchmarks.train_program --steps 24 --config.data.batch=64 \
            --config configs/pretrain.py:gpt2-xl
        ;;
    serving)
        measure serving 300 benchmarks.serve --slots 8 32 64 --clients 128 --each 4 --context 256
        ;;
    *)
        echo "unknown part $part" >&2
        exit 2
        ;;
    esac
done
exit "$failed"
