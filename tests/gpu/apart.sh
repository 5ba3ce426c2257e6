#!/bin/sh
# Runs a command with some of the machine's GPUs, so that two brokers of tests can share one machine at a time:
#   apart.sh 2,3 python -m pytest tests/gpu/test_turns_lab.py
# A broker locks the driver's device file (node/claim.py); here it gets a second one, in a mount namespace of its own.
set -eu
export GPUSPAWNER_GPUS="$1"
shift
node=/dev/nvidiactl-$$
mknod -m 666 "$node" c 195 255  # the driver's own numbers (Documentation/admin-guide/devices.txt)
exec unshare --mount sh -c 'mount --bind "$0" /dev/nvidiactl && rm "$0" && exec "$@"' "$node" "$@"
