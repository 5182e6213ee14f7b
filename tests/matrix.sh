#!/usr/bin/env bash
# Run the suite on the oldest Python and JAX and on the newest that are at hand: too long for CI.
# usage: tests/matrix.sh [TESTS...]
set -uo pipefail
cd "$(dirname "$0")/.."

starts() {
    "python$1" -c '' 2> /dev/null || { echo "python$1 does not start from PATH: skipped"; return 1; }
}

# Install for Python $1 with the requirement $2 and run the tests after them. An environment is kept.
run() {
    local bin=.venv-matrix/$1/bin
    echo "python$1, $2"
    [ -x "$bin/python" ] || "python$1" -m venv ".venv-matrix/$1" || return
    "$bin/python" -m pip install --quiet --disable-pip-version-check --upgrade \
        --config-settings editable_mode=compat --editable ".[dev]" "$2" || return
    "$bin/python" -m pytest "${@:3}"
}

tried="" failed=""
oldest_jax=$(sed -n 's/^jax>=\([^,]*\),.*/jax==\1/p' requirements.txt)
if starts 3.11; then
    tried=yes
    run 3.11 "$oldest_jax" "$@" || failed+=" python3.11"
fi
for version in 3.14 3.13 3.12; do
    if starts $version; then
        tried=yes
        run $version jax "$@" || failed+=" python$version"
        break
    fi
done
[ -n "$tried" ] || { echo "no Python from 3.11 to 3.14: nothing was tested"; exit 2; }
[ -z "$failed" ] || { echo "failed:$failed"; exit 1; }
