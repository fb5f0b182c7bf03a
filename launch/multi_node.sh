#!/usr/bin/env bash
# Train on several nodes: launch/multi_node.sh HOSTFILE RECIPE.yaml [key=value ...]
#
# HOSTFILE has a line "node-1 slots=8" for each node. Run the script on one node: the launcher starts the other nodes by
# ssh (and pdsh). Without ssh, run it on every node:
#   NODE_RANK=0 MASTER_ADDR=node-1 launch/multi_node.sh HOSTFILE RECIPE.yaml ...
#
# The environment describes the machines, the recipe has every hyperparameter (docs/cluster.md):
#   MASTER_ADDR, MASTER_PORT   where the ranks meet: an address of the first node (default: its own), a port (29500)
#   NODE_RANK                  this node's line in HOSTFILE, from 0
#   INTERFACE                  the network interface that the nodes share, such as eth0 or ib0
#   DEEPSPEED                  the launcher (default: deepspeed of this checkout's .venv, else the one in PATH)
#   DS_ENV_FILE                the name of the files with more variables, in the home folder and here (.deepspeed_env)
set -euo pipefail

if [[ $# -lt 2 || ! -f $1 ]]; then
    echo "error: give a hostfile and a recipe: launch/multi_node.sh HOSTFILE RECIPE.yaml [key=value ...]" >&2
    exit 2
fi
hostfile=$1
shift

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
launcher=${DEEPSPEED:-$checkout/.venv/bin/deepspeed}
[[ -x $launcher ]] || launcher=deepspeed
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
if [[ -n ${INTERFACE:-} ]]; then
    export NCCL_SOCKET_IFNAME=$INTERFACE GLOO_SOCKET_IFNAME=$INTERFACE
fi

options=(--hostfile "$hostfile" --master_port "${MASTER_PORT:-29500}")
[[ -n ${MASTER_ADDR:-} ]] && options+=(--master_addr "$MASTER_ADDR")
if [[ -n ${NODE_RANK:-} ]]; then
    if [[ -z ${MASTER_ADDR:-} ]]; then
        echo "error: NODE_RANK=$NODE_RANK without MASTER_ADDR; give an address of the first node, the same on all" >&2
        exit 2
    fi
    options+=(--no_ssh --node_rank "$NODE_RANK")
else
    # By itself DeepSpeed forwards only NCCL, PYTHON, UCX, MV2 and MLFLOW variables, and NCCL only from a node with a GPU.
    # It reads more from a file. This file is deleted while it is open, because nothing runs here after exec.
    variables=$(mktemp)
    exec {descriptor}<>"$variables"
    for name in $(compgen -e); do
        if [[ $name =~ ^((NCCL|GLOO|TORCH|OMP|MA2MBA)_|DEEPSPEED_TIMEOUT$) ]]; then
            printf '%s=%s\n' "$name" "${!name}" >>"$variables"
        fi
    done
    own=${DS_ENV_FILE:-.deepspeed_env}
    for file in ~/"$own" "$own"; do # the last value of a name counts
        if [[ -f $file ]]; then awk NF "$file" >>"$variables"; fi
    done
    rm "$variables"
    export DS_ENV_FILE=/dev/fd/$descriptor
fi
exec "$launcher" "${options[@]}" "$checkout/launch/train.py" "$@"
