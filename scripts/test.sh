#!/usr/bin/env bash
# Installs what the tests need and runs them all.   bash scripts/test.sh [PYTEST-ARGUMENTS]
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh "-e .[test]"
# The CPU build alone: PyPI's own build for Linux brings gigabytes of CUDA libraries.
torch="torch==2.13.0+cpu"
if ! "$python" -c "import torch" 2>/dev/null && ! pip_install "$torch"; then
  echo "$("$python" --version): pip finds no $torch, so the tests that use torch will skip"
fi
# A process more than there are cores, for tests also wait: for other processes, servers, time limits.
# Each has whole files: fixtures and compilations are shared within a file. The order is
# tests/conftest.py's: longest file first
processes=$(($(getconf _NPROCESSORS_ONLN) + 1))
exec "$python" -m pytest -n "$processes" --dist loadfile --no-loadscope-reorder "$@"
