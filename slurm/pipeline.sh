#!/bin/bash
# From a corpus to an evaluated, exported model: prep, pretrain, evaluate, export, as jobs of which
# each starts when the one before has succeeded. On the login node, from the repository's root:
#
#   slurm/pipeline.sh SOURCE DATASET RECIPE.yaml RUN_DIR [options of pretrain.train ...] \
#       [-- options of data_prep build ...]
#
# SOURCE: a file, folder or glob of the corpus; DATASET: where its dataset is built. A dataset that
# is there already is taken as it is. NODES=N in the environment trains on N nodes. The templates'
# lines must be edited, or SBATCH_ACCOUNT, SBATCH_PARTITION and VENV exported. Where a job fails,
# those after it are cancelled; the same command again goes on with what is missing.

set -euo pipefail

die() {
    echo "pipeline: $*" >&2
    exit 2
}

(($# >= 4)) || die "usage: slurm/pipeline.sh SOURCE DATASET RECIPE.yaml RUN_DIR [options ...]"
SOURCE=$1 DATASET=$2 RECIPE=$3 RUN_DIR=$4
shift 4
[[ -f slurm/preamble.sh ]] || die "start it in the repository's root, not in $PWD"
[[ -f $RECIPE ]] || die "no recipe $RECIPE in $PWD; those that exist: pretrain/recipes"
NODES=${NODES:-1}
TEMPLATE=slurm/pretrain_1node.sbatch
((NODES == 1)) || TEMPLATE=slurm/pretrain_multinode.sbatch

TRAIN=()
while (($# > 0)) && [[ $1 != -- ]]; do
    TRAIN+=("$1")
    shift
done
(($# == 0)) || shift # now "$@" is for the preparation

# Before anything is submitted: evaluation would fail days later.
eval "$(grep -m 1 '^VENV=' slurm/cpu_task.sbatch)" # as it is edited there, or exported
[[ -x $VENV/bin/python ]] ||
    die "no Python environment at VENV=$VENV: edit VENV in slurm/cpu_task.sbatch, or export it"
"$VENV/bin/python" -c '
import sys
from pretrain.base.faults import one_line_faults
from pretrain.recipe.parsing import parse
with one_line_faults():
    if not parse(sys.argv[1:])[0].evaluation.asks:
        raise ValueError(f"{sys.argv[2]} names nothing to evaluate: add --evaluation.sets.NAME DIR, "
                         "or another task of docs/evaluation.md")
' --config "$RECIPE" --data.train "$DATASET" --run_dir "$RUN_DIR" "${TRAIN[@]}" || exit 2

JOBS=() AFTER=()
trap '((${#JOBS[@]} == 0)) || scancel "${JOBS[@]}"' ERR # no half chain stays behind

link() { # NAME SBATCH-ARGUMENTS...: one more job, after the ones so far
    local name=$1 job
    shift
    job=$(sbatch --parsable --job-name="$name" "${AFTER[@]}" "$@")
    job=${job%%;*} # a cluster's name may follow
    JOBS+=("$job")
    # Without the second a job whose predecessor failed would stay pending for ever.
    AFTER=(--dependency="afterok:$job" --kill-on-invalid-dep=yes)
    echo "$name $job"
}

if [[ -f $DATASET/manifest.json ]]; then
    echo "prep is left out: $DATASET is a finished dataset"
else
    link prep slurm/cpu_task.sbatch data_prep build --source "$SOURCE" --out "$DATASET" "$@"
fi
link pretrain --nodes="$NODES" "$TEMPLATE" "$RECIPE" --data.train "$DATASET" \
    --run_dir "$RUN_DIR" "${TRAIN[@]}"
link evaluate slurm/evaluate.sbatch "$RUN_DIR" --out "$RUN_DIR/evaluated.json"
link export slurm/cpu_task.sbatch pretrain.export --run_dir "$RUN_DIR"
