#!/usr/bin/env bash
# Runs jaxmoral on a TPU VM or on every worker of a slice. It creates and deletes nothing: make the
# TPU first, e.g.
#   gcloud compute tpus tpu-vm create NAME --zone ZONE --accelerator-type v5litepod-8 --version v2-alpha-tpuv5-lite
# and give it a disk that all workers share for --output-dir (Filestore, or a bucket mounted with gcsfuse
# --implicit-dirs --rename-dir-limit=10000): several hosts write one checkpoint together, and move it to its place.
#
#   scripts/tpu_vm.sh setup  NAME ZONE                     copy this checkout to all workers, install it
#   scripts/tpu_vm.sh train  NAME ZONE FLAGS...            python -m jaxmoral.train FLAGS on all workers
#   scripts/tpu_vm.sh fetch  NAME ZONE REMOTE LOCAL        copy a folder back from worker 0
#
# A pre-empted run goes on with: scripts/tpu_vm.sh train NAME ZONE --output-dir SAME --resume
# $HF_TOKEN, if set, is passed on for models that need a licence.
set -euo pipefail

usage() { sed -n '2,13p' "$0" | sed 's/^# \{0,1\}//' >&2; exit 2; }
[ $# -ge 3 ] || usage
action=$1 name=$2 zone=$3
shift 3

uv="python3 -m uv"  # a TPU VM's own Python may be older than 3.11
on_all() { gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all --command "$1"; }

case $action in
  setup)
    archive=$(mktemp --suffix .tar.gz)
    trap 'rm -f "$archive"' EXIT
    git -C "$(dirname "$0")/.." archive --format=tar.gz --prefix=jaxmoral/ -o "$archive" HEAD
    gcloud compute tpus tpu-vm scp "$archive" "$name:jaxmoral.tar.gz" --zone "$zone" --worker=all
    on_all "tar xzf jaxmoral.tar.gz && cd jaxmoral && python3 -m pip install -q --user uv && $uv venv -q --python '>=3.11' .venv && $uv pip install -q --python .venv/bin/python -e '.[tpu]'"
    ;;
  train)
    [ $# -ge 1 ] || usage
    # JAX finds the other workers by itself; JAXMORAL_CLUSTER asks it to look.
    on_all "cd jaxmoral && JAXMORAL_CLUSTER=auto HF_TOKEN=$(printf %q "${HF_TOKEN:-}") .venv/bin/python -m jaxmoral.train$(printf ' %q' "$@")"
    ;;
  fetch)
    [ $# -eq 2 ] || usage
    gcloud compute tpus tpu-vm scp --recurse "$name:$1" "$2" --zone "$zone" --worker=0
    ;;
  *) usage ;;
esac
