#!/bin/bash
# Trains under SLURM and goes on by itself after a time limit or a preemption:
#
#   sbatch tools/slurm_requeue.sh --config-file configs/zeroshapes/alignzeg.yaml [KEY VALUE ...]
#
# 120 s before the limit SLURM sends SIGUSR1 to every process of the step; the run saves after the
# step at hand and ends with exit code 75, upon which the job is put into the queue again. --resume
# then goes on from the checkpoint. In the middle of a long evaluation there is no step to wait for:
# after ALIGNZEG.CHECKPOINT.GRACE seconds the run ends with 128 + the signal's number, and goes on
# from its last checkpoint. Any other exit code ends the job. Change the lines below to fit the
# cluster; the number of tasks must stay what it was (or add --allow-rescale).
#SBATCH --job-name=alignzeg
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=alignzeg-%j.log
set -u

# SLURM copies this script elsewhere; the folder that sbatch was called in is the project's.
cd "${SLURM_SUBMIT_DIR:-.}" || exit 1
PYTHON=${PYTHON:-.venv/bin/python}

# The batch shell gets the signals of scancel too, and must live until the training has saved.
trap : USR1 TERM
# --kill-on-bad-exit would kill tasks that are still saving; a task that fails ends the others.
srun --kill-on-bad-exit=0 "$PYTHON" tools/train_net.py --resume "$@"
code=$?
case "$code" in
    75 | 138 | 143)
        echo "stopped with exit code $code; back into the queue" >&2
        scontrol requeue "$SLURM_JOB_ID"
        ;;
esac
exit "$code"
