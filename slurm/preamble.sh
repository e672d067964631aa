# shellcheck shell=bash
# The checks and the environment that every template shares: sourced by them, never submitted.
# VENV is set by the template; the working directory is the one that sbatch was called in.

fail() {
    echo "$SLURM_JOB_NAME: $*" >&2
    exit 2
}

[[ -x $VENV/bin/python ]] ||
    fail "no Python environment at VENV=$VENV on $(hostname): edit VENV in the template"

export PATH="$VENV/bin:$PATH"
# The log shows a line when it is written.
export PYTHONUNBUFFERED=1
# Many processes share a node: one thread each, not one per core each.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

# Sets RECIPE, RANKS_PER_NODE and MASTER_PORT, or ends the job before a rank is started.
check_pretrain_request() {
    RECIPE=${1:-}
    [[ $RECIPE == *.yaml ]] ||
        fail "the first argument is the recipe: sbatch TEMPLATE RECIPE.yaml [--option value ...];" \
            "found '$RECIPE'"
    [[ -f $RECIPE ]] || fail "no recipe $RECIPE in $PWD; those that exist: pretrain/recipes"

    # One rank per GPU that Slurm gave; set RANKS_PER_NODE to try a template without GPUs.
    RANKS_PER_NODE=${RANKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-}}
    [[ -n $RANKS_PER_NODE ]] ||
        fail "Slurm gave no GPUs: ask for --gpus-per-node=N, or set RANKS_PER_NODE"

    # This job's own port, below the range that the kernel hands out: jobs on a node do not meet.
    MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
    export RECIPE RANKS_PER_NODE MASTER_PORT
}
