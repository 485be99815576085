#!/usr/bin/env bash
# Start the broker on this host.
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    cat <<'HELP'
Usage: launch/broker.sh [OPTION of `symphony broker`]…

  SYMPHONY         command to run                          (default: symphony from .venv, else from PATH)
  SYMPHONY_CONFIG  configuration file of the cluster       (default: built-in)
  SYMPHONY_CLUSTER_HOST       address to bind              (default: 127.0.0.1)
  SYMPHONY_CLUSTER_INSECURE   true: bind an address that other hosts reach, on a network that you trust
HELP
    exit 0
fi
here=$(cd "$(dirname "$0")/.." && pwd)
PATH="$here/.venv/bin:$PATH"
exec ${SYMPHONY:-symphony} broker ${SYMPHONY_CONFIG:+--config "$SYMPHONY_CONFIG"} "$@"
