#!/usr/bin/env bash
# The suite "gpu" (QP, SOCP and SDP at batch 4096) and the scaling curves on a machine with an NVIDIA GPU: ours and qpth on the
# GPU, cvxpylayers on its processors. Usage: benchmarks/gpu.sh [FOLDER for the results]
#
# Such machines often have torch and no network. Where there is a network, fetch the wheels for the other machine's Python
# (shown for 3.12) and bring the folder along:
#
#   python3 -m pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
#       --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d .wheels \
#       cvxpy==1.9.3 sparsediffpy osqp clarabel==0.11.1 scs ecos diffcp cvxpylayers==1.2.0 qdldl threadpoolctl cffi
#   python3 -m pip wheel --no-deps -w .wheels qpth
#
# and there, before this script:
#
#   python3 -m pip install -q --no-index --no-deps --target /tmp/site .wheels/*.whl && export PYTHONPATH=/tmp/site
#
# GPU_ROWS and GPU_BUDGET (seconds a suite) narrow it down.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results}
budget=${GPU_BUDGET:-240}
python3 -c 'import torch; assert torch.cuda.is_available(), "torch finds no GPU"; print(torch.__version__, torch.cuda.get_device_name())'
python3 -m benchmarks run --suite gpu --device cuda --rounds 5 --budget "$budget" --only "${GPU_ROWS:-*}" --out "$out/gpu.json"
python3 -m benchmarks run --suite scaling --device cuda --rounds 5 --budget "$budget" --out "$out/gpu_scaling.json"
