#!/usr/bin/env bash
# Sets up what is missing and runs the study. `./run_all.sh --help` says the rest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

KNOWN_COHORTS="tcga-brca tcga-kipan tcga-lgg tcga-pancan simulated"
OWN_COHORTS=${GENLIB_DATA:-${XDG_CACHE_HOME:-$HOME/.cache}/genlib}/cohorts.yaml
VENV=.venv

usage() {
    cat <<'HELP'
Usage: ./run_all.sh [COMMAND] [OPTIONS]

Commands
  study (default)   run the notebooks and print a short summary of the answer
  test              run the tests; further words go to pytest, as: ./run_all.sh test -k cohorts
  lab               open JupyterLab on the notebooks
  verify            run quick anew and compare every row of its results with outputs/reference
  cost              measure times on this machine (notebook 11_cost), a quarter of an hour
  sharp-edges       show faults and traps of the tools, each with a reproduction (notebook 12_sharp_edges), a minute

Options of study
  --cohort NAME     tcga-brca (default), tcga-kipan, tcga-lgg, tcga-pancan (1.9 GB to fetch), simulated, a .csv, .tsv,
                    .parquet or .h5ad file of your own, or a cBioPortal study folder; several, separated by commas, are run one after the other or side by
                    side, and then compared (notebook 10); so are several networks and seeds
  --label COLUMN    the column of your file that holds the class of each patient
  --clinical FILE   with a matrix of genes x samples, as from UCSC Xena: the table that holds the label
  --panel NAME      pam50 (default), a GMT file of your own, or none: the published genes that some models are trained on
  --network A  mlp (default), softmax, cnn or deeptype: the target model
  --profile NAME    smoke: a small simulated cohort, about a minute
                    quick (default): real patients, at most 15 minutes on 2 processor cores
                    full: more models, for a GPU or a night
  --seed NUMBER     0 by default; the same seed gives the same results table on the same platform
  --sweep FILE      the same from a YAML file, where each cohort may have a label and a panel of its own
  --scheduler ADDR  a Dask scheduler: its workers take the runs of a sweep, one each; a single run stays on this machine
  --run NAME        folder of results, outputs/NAME; by default COHORT-PROFILE, with network and seed where given
  --from NOTEBOOK   start at this notebook (02 or 02_target_model); what comes before must be finished
  --only NOTEBOOK   run this notebook alone, or these: 02,03
  --help            show this

A run that was stopped or killed goes on where it was: run the same command again.
The first run installs about 3 GB into .venv (or into the active conda environment made from environment.yml).
GENLIB_DATA names the folder for downloaded cohorts; by default the platform's cache folder.
HELP
}

fail() {
    echo "run_all.sh: $1" >&2
    exit 2
}

command=study
case "${1:-}" in
    study | test | lab | cost | sharp-edges | verify) command=$1; shift ;;
    --* | "") ;;
    -h) usage; exit 0 ;;
    *) fail "unknown command '$1'; choose study, test, lab, cost, sharp-edges or verify (./run_all.sh --help)" ;;
esac

arguments=()
if [ "$command" = study ]; then
    while [ $# -gt 0 ]; do
        case "$1" in
            --help | -h) usage; exit 0 ;;
            --cohort | --label | --clinical | --panel | --network | --profile | --seed | --run | --from | --only | --sweep | --scheduler)
                [ $# -ge 2 ] || fail "option $1 needs a value (./run_all.sh --help)"
                [ -n "$2" ] || fail "option $1 needs a value that is not empty (./run_all.sh --help)" ;;
            *) fail "unknown option '$1' (./run_all.sh --help)" ;;
        esac
        case "$1" in
            --cohort)
                # Paths count from where the command was called, known names first; a path may hold a comma.
                located=
                if [ -e "$2" ] || [ -e "$OLDPWD/$2" ]; then several=("$2"); else IFS=, read -ra several <<<"$2"; fi
                for one in "${several[@]}"; do
                    case " $KNOWN_COHORTS " in
                        *" $one "*) ;;
                        *) [ -e "$one" ] || [ -e "$OLDPWD/$one" ] || grep -qs "^$one:" "$OWN_COHORTS" ||
                            fail "unknown cohort '$one'; choose among $KNOWN_COHORTS, or give an existing file" ;;
                    esac
                    if [ ! -e "$one" ] && [ -e "$OLDPWD/$one" ]; then one=$OLDPWD/$one; fi
                    located=${located:+$located,}$one
                done
                set -- "$1" "$located" "${@:3}" ;;
            --clinical | --sweep)
                [ -e "$2" ] || [ -e "$OLDPWD/$2" ] || fail "there is no file '$2'"
                if [ ! -e "$2" ]; then set -- "$1" "$OLDPWD/$2" "${@:3}"; fi ;;
            --profile)
                case "$2" in smoke | quick | full) ;; *) fail "unknown profile '$2'; choose smoke, quick or full" ;; esac ;;
            --seed)
                case ",$2," in *[!0-9,]* | *,,*) fail "seed '$2' is not a whole number of at least 0" ;; esac ;;
            --run)
                case "$2" in */* | .*) fail "run name '$2' must be a plain folder name without '/'" ;; esac ;;
            --from | --only)
                for notebook in ${2//,/ }; do compgen -G "notebooks/$notebook*.ipynb" >/dev/null ||
                    fail "unknown notebook '$notebook'; choose among $(cd notebooks && ls -- *.ipynb | sed 's/.ipynb//' | tr '\n' ' ')"; done ;;
        esac
        arguments+=("$1" "$2")
        shift 2
    done
else
    case "${1:-}" in --help | -h) usage; exit 0 ;; esac
    arguments=("$@")
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
    PYTHON=$VENV/bin/python
    if ! is_311 "$PYTHON" || ! "$PYTHON" -m pip --version >/dev/null 2>&1; then make_environment; fi
    install_lock "$VENV/.genlib-installed"
fi

# The kernel is this environment's own, whatever kernels the user has elsewhere.
export JUPYTER_PREFER_ENV_PATH=1
PATH="$(dirname "$PYTHON"):$PATH"
export PATH
case "$command" in
    study) exec "$PYTHON" -m genlib.study ${arguments[@]+"${arguments[@]}"} ;;
    cost | sharp-edges) exec "$PYTHON" -m genlib.study --apart "$command" ${arguments[@]+"${arguments[@]}"} ;;
    verify) exec "$PYTHON" -m genlib.verify ;;
    test)
        "$PYTHON" -m ruff check .
        "$PYTHON" -m ruff format --check .
        # A test starts TensorFlow, or waits, on one core most of its time.
        exec "$PYTHON" -m pytest -n auto --maxprocesses 4 --dist loadgroup ${arguments[@]+"${arguments[@]}"} ;;
    lab) exec "$PYTHON" -m jupyter lab notebooks ${arguments[@]+"${arguments[@]}"} ;;
esac
