#!/usr/bin/env bash
# Sets up what is missing, and hands over to `python -m genlib`, whose --help says the rest.
set -euo pipefail
FROM=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"
VENV=.venv
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

fail() {
    echo "run_all.sh: $1" >&2
    exit 2
}

case "${1:-}" in
    test | lab) command=$1; shift ;;
    *) command=study ;;
esac
# Help and a wrong word are answered by any Python, before anything is installed.
case " $* " in
    *" --help "* | *" -h "*) python3 -m genlib "$@" || fail "help is printed by Python 3.8 or later"; exit ;;
esac
if [ "$command" = study ]; then
    python3 -c 'from genlib.__main__ import parse; parse()' "$@" || [ $? -ne 2 ] || exit 2
fi

is_311() { "$@" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1; }

make_environment() {
    # An environment that a kill left without a working pip is made anew; it is this script's own folder.
    rm -rf "$VENV"
    for candidate in python3.11 python3 python; do
        if command -v "$candidate" >/dev/null && is_311 "$candidate"; then
            "$candidate" -m venv "$VENV" && return
        fi
    done
    uv=$(command -v uv || true)
    if [ -z "$uv" ]; then
        # Another Python can install uv, and uv can bring Python 3.11.
        for candidate in python3 python; do
            if command -v "$candidate" >/dev/null && "$candidate" -m venv "$VENV-uv" >/dev/null 2>&1 &&
                "$VENV-uv/bin/python" -m pip install -q --disable-pip-version-check uv >/dev/null 2>&1; then
                uv=$VENV-uv/bin/uv
                break
            fi
        done
    fi
    found=$(python3 -c 'import platform; print(platform.python_version())' 2>/dev/null || echo none)
    [ -n "$uv" ] || fail "Python 3.11 is needed, found $found; install Python 3.11 or uv, or activate the conda environment of environment.yml"
    "$uv" venv --quiet --python 3.11 --seed "$VENV" ||
        fail "Python 3.11 is needed, found $found, and uv could not bring it; install Python 3.11, or activate the conda environment of environment.yml"
}

install_lock() {
    local locks=(-r requirements.lock) wanted stamp
    if command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU; then
        locks+=(-r requirements-gpu.lock)
    fi
    wanted=$(cat requirements.lock pyproject.toml <(echo "${locks[@]}" "$PWD") | cksum)
    stamp=$1
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then return; fi
    local total; total=$(grep -c == requirements.lock)
    echo "Installing $total packages, about 3 GB; this is done once and takes a few minutes." >&2
    # pip has no bar for a whole set, so its lines are counted.
    "$PYTHON" -m pip install --disable-pip-version-check --progress-bar off "${locks[@]}" 2>&1 | tee "$stamp.log" |
        awk -v total="$total" -v bar="$([ -t 2 ] && echo 1 || echo 0)" '
            /^(Collecting|Requirement already)/ { n++; if (bar && n <= total) printf "\r  %d of %d found", n, total }
            /^Installing collected/ { printf "%s  unpacking ...\n", (bar ? "\n" : "") } { fflush() }' >&2 ||
        { tail -n 20 "$stamp.log" >&2; fail "the packages could not be installed; the lines above are pip's"; }
    "$PYTHON" -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e . >>"$stamp.log" 2>&1 ||
        { tail -n 20 "$stamp.log" >&2; fail "genlib could not be installed; the lines above are pip's"; }
    echo "$wanted" >"$stamp"
}

if [ -n "${CONDA_PREFIX:-}" ] && [ "${CONDA_DEFAULT_ENV:-base}" != base ]; then
    PYTHON=$CONDA_PREFIX/bin/python
    is_311 "$PYTHON" || fail "the active conda environment '$CONDA_DEFAULT_ENV' has another Python than 3.11; make one with 'conda env create -f environment.yml', or deactivate it"
    install_lock "$CONDA_PREFIX/.genlib-installed"
else
    PYTHON=$PWD/$VENV/bin/python
    if ! is_311 "$PYTHON" || ! "$PYTHON" -m pip --version >/dev/null 2>&1; then make_environment; fi
    install_lock "$VENV/.genlib-installed"
fi

# The kernel is this environment's own, whatever kernels the user has elsewhere.
export JUPYTER_PREFER_ENV_PATH=1
# Two notebooks or tests go at a time: threads of BLAS would be in each other's way, and last digits depend on their number.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
PATH="$(dirname "$PYTHON"):$PATH"
export PATH
case "$command" in
    study) cd "$FROM" && exec "$PYTHON" -m genlib "$@" ;; # paths count from where it was called
    test)
        "$PYTHON" -m ruff check .
        "$PYTHON" -m ruff format --check .
        # A test starts TensorFlow, or waits, on one core most of its time.
        exec "$PYTHON" -m pytest -n auto --maxprocesses 4 --dist loadgroup "$@" ;;
    lab) exec "$PYTHON" -m jupyter lab notebooks "$@" ;;
esac
