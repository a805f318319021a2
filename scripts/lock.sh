#!/usr/bin/env bash
# Resolve pyproject.toml into requirements/*.lock. For developers: needs uv (https://docs.astral.sh/uv/).
#
# uv has to see a CPU build of PyTorch, which PyPI does not hold. Name PyTorch's CPU index, or a folder with the wheel:
#     UV_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu UV_INDEX_STRATEGY=unsafe-best-match scripts/lock.sh
#     UV_FIND_LINKS=/a/folder/with/the/wheel scripts/lock.sh
# Add --upgrade to move every package to its newest version; without it the versions locked now are kept.
set -euo pipefail

cd "$(dirname "$0")/.."
uv=${UV:-uv}
command -v "$uv" >/dev/null || { echo "lock: uv not found; install it (pipx install uv) or set UV=/path/to/uv" >&2; exit 1; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

resolve() { # resolve OUT EXTRA...: everything those extras need, with hashes
    local out=$1
    shift
    "$uv" pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
        --override requirements/overrides.txt --constraint "$work/constraints.txt" \
        --generate-hashes --no-annotate --no-header "${@/#/--extra=}" pyproject.toml --output-file "$out"
}

upgrade=no
case "${1:-}" in
    "") ;;
    --upgrade) upgrade=yes ;;
    *) echo "usage: scripts/lock.sh [--upgrade]" >&2; exit 2 ;;
esac

: >"$work/constraints.txt"
pins() { grep -hoE '^[A-Za-z0-9._-]+==[^ ]+' "$@" || true; }
if [ "$upgrade" = no ] && [ -e requirements/base.lock ]; then
    # As preferences, not constraints: a pin that pyproject.toml has outgrown moves, the others stay.
    pins requirements/*.lock >"$work/all.lock"
fi

resolve "$work/all.lock" cpu demo compile dev
pins "$work/all.lock" >"$work/constraints.txt"
resolve "$work/base.lock"
resolve "$work/cpu.lock" cpu
resolve "$work/demo.lock" cpu demo
resolve "$work/compile.lock" cpu compile
# Another build of vLLM and PyTorch, with needs of its own; the platform below it is the same. Without the place where
# PyTorch's CPU build is found, which would win over the one with CUDA.
pins "$work/base.lock" >"$work/constraints.txt"
UV_FIND_LINKS="" UV_EXTRA_INDEX_URL="" resolve "$work/gpu.lock" gpu
python3 scripts/split_lock.py "$work" requirements
