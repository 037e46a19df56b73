#!/usr/bin/env bash
# A training on a slice of TPU VMs:  tpu_vm.sh bucket | create | setup | train | log | delete
# DRY=1 prints the commands instead. Parameters: settings.env, or the file in SETTINGS.
# What is set up is the last commit. A spot slice that was taken away is not made again by itself:
# delete, create, setup, train, and the training goes on from its last checkpoint.
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
    code=${TMPDIR:-/tmp}/$NAME.tar.gz
    run git -C "$here/../.." archive --format=tar.gz --output="$code" HEAD
    run gcloud compute tpus tpu-vm scp "${where[@]}" --worker=all "$code" "$NAME:/tmp/mg_jax.tar.gz"
    # whoever logs in owns the code and the files of the bucket, which root mounts
    everywhere "me=\$(id -u) && us=\$(id -g) &&
      sudo rm -rf $HOME_DIR && sudo mkdir -p $HOME_DIR $mount && sudo chown \$me:\$us $HOME_DIR &&
      tar -xzf /tmp/mg_jax.tar.gz -C $HOME_DIR && cd $HOME_DIR && make setup EXTRAS=tpu &&
      { mountpoint -q $mount || sudo gcsfuse --implicit-dirs -o allow_other --uid \$me --gid \$us \
        $BUCKET $mount; }"
    ;;
  train)
    # nohup: the training outlives this connection. The bucket gets the logs when a process ends.
    everywhere "set -e; cd $HOME_DIR; mkdir -p ${WORKDIR%/*}
      export JAX_COMPILATION_CACHE_DIR=$CACHE RESTARTS=$RESTARTS
      nohup launch/pods/again.sh .venv/bin/python -m launch.train --distributed \
      --config $CONFIG --workdir $WORKDIR $FLAGS >> $WORKDIR.\$(hostname).log 2>&1 < /dev/null &"
    ;;
  log)
    run gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=0 \
      --command="tail -n 100 -f $WORKDIR.\$(hostname).log"
    ;;
  delete)
    run gcloud compute tpus tpu-vm delete "$NAME" "${where[@]}"
    ;;
  *)
    sed -n '2,5p' "${BASH_SOURCE[0]}" | cut -c3-
    exit 2
    ;;
esac
