#!/usr/bin/env bash
# Start one scheduler shard on this host.
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    cat <<'HELP'
Usage: launch/scheduler.sh SHARD [OPTION of `symphony scheduler`]…      e.g. launch/scheduler.sh shard-0

  SYMPHONY         command to run                          (default: symphony from .venv, else from PATH)
  SYMPHONY_CONFIG  configuration file of the cluster       (default: built-in)
  SYMPHONY_CLUSTER_HOST       the broker's address         (default: 127.0.0.1)
  SYMPHONY_CLUSTER_INSECURE   true: bind an address that other hosts reach, on a network that you trust

On a host of its own, add --host with that host's address: it binds there and tells the others.
HELP
    exit 0
fi
shard=${1:?say which shard, e.g. launch/scheduler.sh shard-0; --help tells more}
shift
here=$(cd "$(dirname "$0")/.." && pwd)
PATH="$here/.venv/bin:$PATH"
exec ${SYMPHONY:-symphony} scheduler --id "$shard" ${SYMPHONY_CONFIG:+--config "$SYMPHONY_CONFIG"} "$@"
