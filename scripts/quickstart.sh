#!/usr/bin/env bash
# Installs, pre-trains on the built-in scenes (or on FOLDER's images), resumes once, converts to
# Detectron2, and says where everything lies.   bash scripts/quickstart.sh [FOLDER]
set -euo pipefail
start_folder=$PWD
cd "$(dirname "$0")/.."
source scripts/environment.sh "-e ."
cd "$start_folder"
exec "$python" "$OLDPWD/scripts/quickstart.py" "$@"
