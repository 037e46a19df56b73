#!/usr/bin/env bash
# Run a command until it is finished: again.sh COMMAND...
# 0 is finished, 2 bad input and 65 a loss that is not finite, which another start would not mend;
# after anything else (75 is "preempted, saved", 1 or a signal a crash, of this machine or another)
# the same command goes on from the last checkpoint. SIGTERM, the notice of a preemption, goes to
# the command, and nothing is started after it.
set -u
limit=${RESTARTS:-100}
told=
trap 'told=1; kill -TERM "$child" 2>/dev/null' TERM

run() { # in the background: bash answers a signal while it waits, but not while it runs a program
  "$@" &
  child=$!
  [[ -z $told ]] || kill -TERM "$child" 2>/dev/null
  wait "$child"
  code=$?
  while kill -0 "$child" 2>/dev/null; do
    wait "$child"
    code=$?
  done
  return "$code"
}

child=
for ((start = 0; start <= limit; start++)); do
  run "$@"
  ended=$?
  case $ended in 0 | 2 | 65) exit "$ended" ;; esac
  [[ -z $told ]] || exit "$ended"
  echo "ended with $ended; start $((start + 1)) of $limit follows" >&2
  run sleep "${PAUSE:-10}"
  [[ -z $told ]] || exit "$ended"
done
exit "$ended"
