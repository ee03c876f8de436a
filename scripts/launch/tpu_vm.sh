#!/usr/bin/env bash
# Pre-trains on a Cloud TPU VM slice, step by step:
#   bash scripts/launch/tpu_vm.sh create | setup | run | log | stop | delete
# DRY_RUN=1 prints the commands instead of running them. Set what differs from these defaults:
set -euo pipefail
NAME=${NAME:-mcl}
ZONE=${ZONE:-us-west4-a}
TYPE=${TYPE:-v5litepod-256}              # the slice; plan it first: mcl-jax plan
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}  # the VM image that belongs to the type
REPO=${REPO:-}                           # git URL that the hosts can clone
BUCKET=${BUCKET:-}                       # bucket with the prepared data set; runs go to its runs/
CONFIG=${CONFIG:-configs/mcl.py}
RUN=${RUN:-r50}                          # name of the run's folder
FLAGS=${FLAGS:-}                         # further flags of mcl-jax pretrain

do_it() { if [ -n "${DRY_RUN:-}" ]; then printf '%q ' "$@"; echo; else "$@"; fi; }

on_all_hosts() {
  do_it gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"
}

case "${1:-}" in
  create)
    do_it gcloud compute tpus tpu-vm create "$NAME" --zone="$ZONE" \
      --accelerator-type="$TYPE" --version="$RUNTIME"
    ;;
  setup)
    : "${REPO:?REPO=URL is missing: where the hosts clone this repository from}"
    : "${BUCKET:?BUCKET=NAME is missing: where the prepared data set lies}"
    on_all_hosts "set -e
      sudo apt-get update -q && sudo apt-get install -qy fuse gcsfuse
      sudo mkdir -p /mnt/data && sudo chmod 777 /mnt/data
      mountpoint -q /mnt/data || gcsfuse --implicit-dirs -o ro $BUCKET /mnt/data
      [ -d mcl_jax ] || git clone -q $REPO mcl_jax
      [ -x .local/bin/uv ] || curl -LsSf https://astral.sh/uv/install.sh | sh
      cd mcl_jax && ~/.local/bin/uv venv -q --python 3.11 --allow-existing
      ~/.local/bin/uv pip install -q -e '.[tpu,gcs]'"
    ;;
  run)
    : "${BUCKET:?BUCKET=NAME is missing: where the run goes}"
    # every host the same command; JAX on a TPU VM finds the others by itself
    on_all_hosts "cd mcl_jax && { nohup .venv/bin/mcl-jax pretrain --config $CONFIG \
--workdir gs://$BUCKET/runs/$RUN --config.data.data_dir=/mnt/data --distributed $FLAGS \
</dev/null >~/$RUN.log 2>&1 & }"
    ;;
  log) on_all_hosts "tail -n 2 ~/$RUN.log" ;;
  stop) on_all_hosts "pkill -TERM -f [m]cl-jax.pretrain" ;;  # saves, and ends with 75
  delete) do_it gcloud compute tpus tpu-vm delete "$NAME" --zone="$ZONE" --quiet ;;
  *)
    echo "error: '${1:-}' is not one of create, setup, run, log, stop, delete" >&2
    exit 2
    ;;
esac
