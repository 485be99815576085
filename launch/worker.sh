#!/usr/bin/env bash
# Start one worker on this host.
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    cat <<'HELP'
Usage: launch/worker.sh DEVICE MODEL[,MODEL…] [OPTION of `symphony worker`]…
       e.g. launch/worker.sh cuda:0 minilm,crepe-tiny --shard shard-1

DEVICE is cuda:N, cpu or emulated.

  SYMPHONY         command to run                          (default: symphony from .venv, else from PATH)
  SYMPHONY_CONFIG  configuration file of the cluster       (default: built-in)
  SYMPHONY_CLUSTER_HOST       the broker's address         (default: 127.0.0.1)
  SYMPHONY_CLUSTER_INSECURE   true: bind an address that other hosts reach, on a network that you trust

On a host of its own, add --host with that host's address: it binds there and tells the others.
HELP
    exit 0
fi
device=${1:?say which device and models, e.g. launch/worker.sh cpu minilm; --help tells more}
models=${2:?say which models, e.g. launch/worker.sh cpu minilm,crepe-tiny; --help tells more}
shift 2
here=$(cd "$(dirname "$0")/.." && pwd)
PATH="$here/.venv/bin:$PATH"
options=()
IFS=, read -ra names <<<"$models"
for name in "${names[@]}"; do
    options+=(--model "$name")
done
exec ${SYMPHONY:-symphony} worker --id "$(hostname)-${device//:/-}" --device "$device" "${options[@]}" \
    ${SYMPHONY_CONFIG:+--config "$SYMPHONY_CONFIG"} "$@"
