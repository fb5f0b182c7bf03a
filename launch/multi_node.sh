#!/usr/bin/env bash
# Train on several nodes: launch/multi_node.sh HOSTFILE RECIPE.yaml [key=value ...]
#
# This is `ma2mba train --hostfile HOSTFILE RECIPE.yaml ...` with the code of this checkout. docs/cluster.md explains the
# variables MASTER_ADDR, MASTER_PORT, NODE_RANK and INTERFACE.
#   PYTHON      the interpreter (default: of this checkout's .venv, else python3)
#   DEEPSPEED   a deepspeed program: the interpreter beside it is used
set -euo pipefail

if [[ $# -lt 2 || ! -f $1 ]]; then
    echo "error: give a hostfile and a recipe: launch/multi_node.sh HOSTFILE RECIPE.yaml [key=value ...]" >&2
    exit 2
fi
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$checkout/.venv/bin/python}
if [[ -n ${DEEPSPEED:-} ]]; then python=$(dirname "$DEEPSPEED")/python; fi
[[ -x $python ]] || python=${PYTHON:-python3}
export PYTHONPATH=$checkout${PYTHONPATH:+:$PYTHONPATH}
exec "$python" -m ma2mba train --hostfile "$@"
