#!/usr/bin/env bash
# Run a command until it is finished: again.sh COMMAND...
# 0 is finished and 2 bad input, which another start would not mend; after anything else (75 is
# "preempted, saved", 1 or a signal a crash, of this machine or another) the same command goes on
# from the last checkpoint.
set -u
limit=${RESTARTS:-100}
for ((start = 0; start <= limit; start++)); do
  "$@" &
  child=$!
  # a preemption notice is for the training; the machine ends this script soon enough
  trap 'kill -TERM "$child" 2>/dev/null' TERM
  wait "$child"
  code=$?
  while kill -0 "$child" 2>/dev/null; do
    wait "$child"
    code=$?
  done
  [[ $code == 0 || $code == 2 ]] && exit "$code"
  echo "ended with $code; start $((start + 1)) of $limit follows" >&2
  sleep "${PAUSE:-10}"
done
exit "$code"
