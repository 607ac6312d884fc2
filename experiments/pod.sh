#!/usr/bin/env bash
# Runs one command on every worker of a TPU VM pod: copies the data set to each worker first, because records are
# memory-mapped from a local disk; checkpoints go to a bucket that all workers share.
#
#   experiments/pod.sh NAME ZONE gs://BUCKET/datasets/mnist train --config=experiments/mnist.py --workdir=gs://BUCKET/runs/mnist
#
# Expects this repository in ~/vae_jax of every worker, with `make .venv/.installed && .venv/bin/pip install "jax[tpu]" gcsfs` done there.
set -euo pipefail
if [ $# -lt 4 ]; then
    sed -n '2,7p' "$0" | cut -c3-
    exit 2
fi
name=$1 zone=$2 data=$3
shift 3
printf -v command '%q ' "$@"
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="
    set -e
    cd ~/vae_jax
    mkdir -p datasets
    gcloud storage cp --recursive --no-clobber '$data' datasets/
    .venv/bin/python -m vae_jax $command --distributed"
