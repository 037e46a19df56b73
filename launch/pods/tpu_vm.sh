#!/usr/bin/env bash
# A training on a slice of TPU VMs:  tpu_vm.sh bucket | create | setup | train | log | delete
# DRY=1 prints the commands instead. Parameters: settings.env, or the file in SETTINGS.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
set -a
# shellcheck source=settings.env
source "${SETTINGS:-$here/settings.env}"
set +a
where=(--project="$PROJECT" --zone="$ZONE")

run() {
  if [[ -n ${DRY:-} ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

everywhere() {
  run gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=all --command="$1"
}

case ${1:-} in
  bucket)
    # hierarchical: folders are renamed in one step, which is what makes a checkpoint whole
    run gcloud storage buckets create "gs://$BUCKET" --project="$PROJECT" \
      --location="${ZONE%-*}" --uniform-bucket-level-access --enable-hierarchical-namespace
    ;;
  create)
    run gcloud compute tpus tpu-vm create "$NAME" "${where[@]}" \
      --accelerator-type="$ACCELERATOR" --version="$RUNTIME" --spot
    ;;
  setup)
    mount=${WORKDIR%/runs/*}
    run gcloud compute tpus tpu-vm scp --recurse "${where[@]}" --worker=all \
      "$here/../.." "$NAME:/tmp/mg_jax"
    everywhere "sudo rm -rf $HOME_DIR && sudo mv /tmp/mg_jax $HOME_DIR && cd $HOME_DIR &&
      make setup EXTRAS=tpu && sudo mkdir -p $mount && sudo gcsfuse --implicit-dirs -o allow_other $BUCKET $mount"
    ;;
  train)
    # nohup: the training outlives this connection; its log is on every machine
    everywhere "cd $HOME_DIR && export JAX_COMPILATION_CACHE_DIR=$CACHE RESTARTS=$RESTARTS &&
      nohup launch/pods/again.sh .venv/bin/python -m launch.train --distributed \
      --config $CONFIG --workdir $WORKDIR $FLAGS > /tmp/$NAME.log 2>&1 &"
    ;;
  log)
    run gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=0 \
      --command="tail -n 100 -f /tmp/$NAME.log"
    ;;
  delete)
    run gcloud compute tpus tpu-vm delete "$NAME" "${where[@]}"
    ;;
  *)
    sed -n '2,3p' "${BASH_SOURCE[0]}" | cut -c3-
    exit 2
    ;;
esac
