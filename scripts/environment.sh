# Sourced by quickstart.sh and test.sh: makes .venv in the repository and installs into it.
# Usage: source scripts/environment.sh PIP-ARGUMENTS...   (sets $python, defines pip_install)

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python; do
    if [ -n "$candidate" ] && "$candidate" -c \
        'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  echo "error: Python 3.11, 3.12 or 3.13 is needed; set PYTHON=/path/to/python3" >&2
  return 2
}

pip_install() {
  "$python" -m pip install --disable-pip-version-check "$@" >>.venv/install.log 2>&1
}

base_python=$(find_python) || exit 2
if [ ! -x .venv/bin/python ]; then
  "$base_python" -m venv .venv || {
    echo "error: $base_python -m venv failed; on Debian and Ubuntu: apt-get install python3-venv" >&2
    exit 2
  }
fi
python=$PWD/.venv/bin/python
echo "installing into .venv (log: .venv/install.log) ..."
for arguments in "$@"; do
  # unquoted on purpose: one string holds the arguments of one pip call
  # shellcheck disable=SC2086
  if ! pip_install $arguments; then
    tail -n 5 .venv/install.log >&2
    echo "error: pip install $arguments failed; see .venv/install.log" >&2
    exit 1
  fi
done
