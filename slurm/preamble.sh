# shellcheck shell=bash
# The checks, the environment and the functions that the templates share: sourced by them, never
# submitted. VENV is set by the template; the working directory is the one that sbatch was called in.

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

# Sets RANKS_PER_NODE, MASTER_ADDR and MASTER_PORT: where this job's ranks are, and meet.
place_ranks() {
    # One rank per GPU that Slurm gave; set RANKS_PER_NODE to try a template without GPUs.
    RANKS_PER_NODE=${RANKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-}}
    [[ -n $RANKS_PER_NODE ]] ||
        fail "Slurm gave no GPUs: ask for --gpus-per-node=N, or set RANKS_PER_NODE"
    # Decided once, here, and inherited by all: nodes that each decide for themselves do not meet.
    MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    # This job's own port, below the range that the kernel hands out: jobs on a node do not meet.
    MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
    # srun does not take the CPU count over from sbatch; without it a task may be bound to one core.
    SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}
    export RANKS_PER_NODE MASTER_ADDR MASTER_PORT SRUN_CPUS_PER_TASK
}

# Sets COUNT, how many shares there are, of which SLURM_ARRAY_TASK_ID counted from 0 is this job's.
share_of_array() {
    [[ -n ${SLURM_ARRAY_TASK_ID:-} ]] || fail "submit as an array: sbatch --array=0-15 TEMPLATE ..."
    COUNT=${COUNT:-$SLURM_ARRAY_TASK_COUNT}
    ((SLURM_ARRAY_TASK_ID < COUNT)) ||
        fail "share $SLURM_ARRAY_TASK_ID of $COUNT: they count from 0, so --array=0-$((COUNT - 1)), or" \
            "COUNT=N in the environment for some shares of N"
}

# Sets CONTAINER_ARGS, for every srun: where CONTAINER names an image (a .sqsh, or a registry's), the
# ranks run in it, by the pyxis plugin. Under `sbatch --container-image` srun itself is not there.
use_container() {
    CONTAINER_ARGS=()
    [[ -z ${CONTAINER:-} ]] || CONTAINER_ARGS=(
        --container-image="$CONTAINER"
        --container-mounts="${CONTAINER_MOUNTS:-$PWD:$PWD}${SHARD_CACHE:+,$SHARD_CACHE:$SHARD_CACHE}"
        --container-workdir="$PWD"
    )
}

# Sets CACHE_ARGS: where SHARD_CACHE names a folder of each node's own disk, shards are copied to one
# below it that is this job's; a node's launcher removes it when its ranks have ended.
use_shard_cache() { # TRAINING OPTIONS...
    CACHE_ARGS=()
    [[ -n ${SHARD_CACHE:-} ]] || return 0
    [[ " $*" != *" --data.shards.cache"[=\ ]* ]] ||
        fail "SHARD_CACHE and --data.shards.cache: give one of them"
    export PRETRAIN_REMOVE_AT_END=$SHARD_CACHE/pretrain-$SLURM_JOB_ID
    CACHE_ARGS=(--data.shards.cache "$PRETRAIN_REMOVE_AT_END")
    [[ -z ${SHARD_CACHE_GIB:-} ]] || CACHE_ARGS+=(--data.shards.cache_gib "$SHARD_CACHE_GIB")
}

# --- pretraining ----------------------------------------------------------------------------------

# The run folder that a recipe names: plain, in quotes, with a comment, with Windows' line ends.
run_dir_of() { # RECIPE
    [[ -f $1 ]] || return 0
    sed -n 's/\r$//; s/^["'"'"']\{0,1\}run_dir["'"'"']\{0,1\}[[:space:]]*:[[:space:]]*//p' "$1" | tail -n 1 |
        sed -E "s/^\"([^\"]*)\".*$/\1/; t; s/^'([^']*)'.*$/\1/; t; s/(^|[[:space:]]+)#.*$//; s/[[:space:]]+$//; s/^(null|~)$//"
}

# Sets RECIPE and RUN_DIR from what the template was called with, or ends the job.
check_pretrain_request() {
    RECIPE=${1:-}
    [[ $RECIPE == *.yaml ]] ||
        fail "the first argument is the recipe: sbatch TEMPLATE RECIPE.yaml [--option value ...];" \
            "found '$RECIPE'"
    [[ -f $RECIPE ]] || fail "no recipe $RECIPE in $PWD; those that exist: pretrain/recipes"
    export RECIPE

    local typed="" found
    RUN_DIR=$(run_dir_of "$RECIPE")
    while (($# > 1)); do
        shift
        case $1 in
            --run_dir | --run-dir) typed=${2:-} ;;
            --run_dir=* | --run-dir=*) typed=${1#*=} ;;
            --config | --config=*)
                found=$(run_dir_of "$([[ $1 == *=* ]] && echo "${1#*=}" || echo "${2:-}")")
                RUN_DIR=${found:-$RUN_DIR}
                ;;
        esac
    done
    RUN_DIR=${typed:-$RUN_DIR}
    [[ -n $RUN_DIR ]] || fail "$RECIPE names no run folder: add --run_dir runs/x"
}

# The name of RUN_DIR's newest whole checkpoint, or "none".
newest_checkpoint() {
    local path newest=none
    for path in "$RUN_DIR"/checkpoints/step-*/state.json; do
        path=${path%/*}
        [[ $path == *[!0-9] || ! -d $path ]] || newest=${path##*/} # not one that is being written
    done
    echo "$newest"
}

# Sets CHECKPOINT, the newest one at this start, and RESTARTS, how often in a row Slurm has started
# this job again, for whatever reason, without a newer one. Ends the job where that is too often.
count_restarts() {
    local file=slurm/logs/$SLURM_JOB_NAME-$SLURM_JOB_ID.restarts before="" count=0
    CHECKPOINT=$(newest_checkpoint) RESTARTS=0
    if ((${SLURM_RESTART_COUNT:-0} > 0)) && [[ -f $file ]]; then
        read -r before count <"$file" || true
        [[ $before != "$CHECKPOINT" ]] || RESTARTS=$((count + 1))
    fi
    echo "$CHECKPOINT $RESTARTS" >"$file"
    ((RESTARTS <= MAX_IDLE_RESTARTS)) || end_for_no_progress
}

end_for_no_progress() {
    echo "$SLURM_JOB_NAME: $RESTARTS restarts without a new checkpoint in $RUN_DIR (newest:" \
        "$CHECKPOINT): the job ends; fix the cause above, or save more often" \
        "(--checkpoint.every_steps)" >&2
    exit 1
}

# Trains RECIPE "$@" on all nodes of the job. Ends the job with the code of the rank that ended
# first, or gives it back to Slurm to be started again where that code asks for it.
pretrain() {
    check_pretrain_request "$@"
    shift
    place_ranks
    use_container
    use_shard_cache "$@"
    MAX_IDLE_RESTARTS=${MAX_IDLE_RESTARTS:-3} MAX_EXCLUDED=${MAX_EXCLUDED:-4}
    count_restarts
    echo "job $SLURM_JOB_ID on $SLURM_JOB_NODELIST: $SLURM_NNODES nodes x $RANKS_PER_NODE ranks," \
        "master $MASTER_ADDR:$MASTER_PORT, SLURM_RESTART_COUNT=${SLURM_RESTART_COUNT:-0}," \
        "newest checkpoint $CHECKPOINT, $RECIPE $*"

    # USR1 comes some minutes before the time limit, to this shell alone. TERM comes from a Slurm
    # that is ending the job, to the ranks as well: the shell only has to outlive them.
    STEP="" ASKED="" INTERRUPTED=""
    trap 'ASKED=1 INTERRUPTED=1; [[ -z $STEP ]] || kill -USR1 "$STEP" || true' USR1
    trap 'INTERRUPTED=1' TERM

    preflight "$@"
    local code=0
    train_on_nodes "$@" || code=$?
    end_or_requeue "$code"
}

# Looks at every node, and ends the job where one is bad: seconds, against ranks that fail one by
# one, or wait. PREFLIGHT=0 in the environment leaves it out. EXCLUDE_BAD_NODES=1 gives the job back
# to the queue instead, not to be started on those nodes again.
preflight() {
    [[ ${PREFLIGHT:-1} != 0 ]] || return 0
    export PRETRAIN_BAD_NODES=slurm/logs/$SLURM_JOB_NAME-$SLURM_JOB_ID.bad
    rm -f -- "$PRETRAIN_BAD_NODES"
    # The nodes wait for each other, so that all that is wrong is said.
    ! srun "${CONTAINER_ARGS[@]}" --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=0 \
        python -m pretrain.preflight --config "$RECIPE" "${CACHE_ARGS[@]}" "$@" || return 0
    [[ ${EXCLUDE_BAD_NODES:-0} == 0 || ! -s $PRETRAIN_BAD_NODES ]] ||
        requeue_without "$(<"$PRETRAIN_BAD_NODES")"
    fail "the pre-flight failed, see above: leave a bad node out (sbatch --exclude=NODE, or export" \
        "EXCLUDE_BAD_NODES=1), or export PREFLIGHT=0"
}

# Gives the job back to the queue, to be started on other nodes. Returns only where that fails.
requeue_without() { # NODES: a comma between them
    local before
    before=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/.*ExcNodeList=\([^ ]*\).*/\1/p')
    [[ $before == "(null)" || -z $before ]] || set -- "$before,$1"
    (($(scontrol show hostnames "$1" | wc -l) <= MAX_EXCLUDED)) ||
        fail "more than MAX_EXCLUDED=$MAX_EXCLUDED nodes are bad: the fault may not be theirs"
    # Only a waiting job can be told where not to go: held first, so that it does not start before.
    # Slurm then sends TERM to this shell and to whatever it runs, which must not end it half way:
    # a job that stays held waits for ever.
    trap '' TERM
    scontrol requeuehold "$SLURM_JOB_ID" || return 0
    if tried 20 scontrol update JobId="$SLURM_JOB_ID" ExcNodeList="$1"; then
        echo "back to the queue, without $1"
    else
        echo "back to the queue; Slurm does not leave out $1" >&2
    fi
    # Not a restart without progress.
    echo "excluded 0" >"slurm/logs/$SLURM_JOB_NAME-$SLURM_JOB_ID.restarts"
    tried 20 scontrol release "$SLURM_JOB_ID" || true
    exit 2
}

tried() { # TIMES COMMAND...: until it succeeds, half a second apart
    local left=$1
    shift
    until "$@"; do
        ((--left > 0)) || return 1
        sleep 0.5
    done
}

# Returns 0, or the code of the rank that ended first, on whatever node.
train_on_nodes() {
    # srun reports the highest code of all nodes; what counts is the first, which ended the others.
    export PRETRAIN_FIRST_CODE=slurm/logs/$SLURM_JOB_NAME-$SLURM_JOB_ID.code
    rm -f -- "$PRETRAIN_FIRST_CODE"
    local logs=() code
    ((SLURM_NNODES == 1)) || logs=(--output=slurm/logs/%x-%j-%N.out --open-mode=append)

    # Single quotes, because SLURM_NODEID is each node's own: the batch shell would write 0 for all.
    # A node that fails, or ends a minute before the others, ends them too instead of a silent hang.
    # shellcheck disable=SC2016
    srun "${CONTAINER_ARGS[@]}" --ntasks-per-node=1 --kill-on-bad-exit=1 --wait=60 "${logs[@]}" \
        bash -c 'exec python -m pretrain.launch torchrun \
            --nnodes "$SLURM_NNODES" --node_rank "$SLURM_NODEID" \
            --nproc_per_node "$RANKS_PER_NODE" \
            --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" \
            -m pretrain.train --config "$RECIPE" "$@"' torchrun "${CACHE_ARGS[@]}" "$@" &
    STEP=$!
    [[ -z $ASKED ]] || kill -USR1 "$STEP"
    # In the background, because a shell takes no signal while it runs a command; and `wait` returns
    # at a signal too.
    while :; do
        INTERRUPTED="" code=0
        wait "$STEP" || code=$?
        [[ -n $INTERRUPTED ]] || break
    done
    if [[ -s $PRETRAIN_FIRST_CODE ]]; then
        code=$(<"$PRETRAIN_FIRST_CODE")
    elif ((code != 0)) && [[ -n $ASKED ]]; then
        code=75 # srun itself was asked, before there were ranks that could answer
    fi
    rm -f -- "$PRETRAIN_FIRST_CODE"
    return "$code"
}

# Ends the job with a code. 75 (stopped on request) and 124 (stood still) go back to the queue.
end_or_requeue() { # CODE
    local state
    [[ $1 == 75 || $1 == 124 ]] || exit "$1"
    # Cancelled, preempted, at its time limit: then it is Slurm that decides what follows.
    state=$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T)
    if [[ $state != RUNNING ]]; then
        echo "the ranks ended with $1 while Slurm ends the job ($state): not requeued from here"
        exit "$1"
    fi
    [[ $(newest_checkpoint) != "$CHECKPOINT" ]] || ((RESTARTS < MAX_IDLE_RESTARTS)) ||
        end_for_no_progress
    echo "the ranks ended with $1: back to the queue, to go on from $(newest_checkpoint)"
    scontrol requeue "$SLURM_JOB_ID" || echo "not requeued: submit the same command again" >&2
    exit "$1"
}
