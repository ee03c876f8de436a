#!/usr/bin/env bash
# Installs what the tests need and runs them all.   bash scripts/test.sh [PYTEST-ARGUMENTS]
set -euo pipefail
cd "$(dirname "$0")/.."
# torch first and pinned: a bare range would take the newest build with gigabytes of CUDA libraries
source scripts/environment.sh "torch==2.13.0" "-e .[test,torch]"
# two processes, each with whole files: fixtures and compilations are shared within a file
exec "$python" -m pytest -n 2 --dist loadfile "$@"
