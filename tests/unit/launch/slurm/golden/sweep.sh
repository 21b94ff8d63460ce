#!/bin/bash -l
# Written by `python -m launch`. To submit it again: cd to its folder, sbatch and its name.
#SBATCH --job-name=demo
#SBATCH --partition=gpu
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --time=02:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --array=0-1%1
#SBATCH --output=%A_%a.out
#SBATCH --gres=gpu:a100:4
#SBATCH --requeue
#SBATCH --open-mode=append

cd '/shared/my project' || exit 2
set -u

nproc=4
requeue=yes
max_restarts=100
max_idle_starts=3
python=python3
node_counts=(1)
step_options=()
container=(apptainer exec --nv --bind=/data /images/hw.sif)
export WANDB_RUN_GROUP=${WANDB_RUN_GROUP:-demo}
case "$SLURM_ARRAY_TASK_ID" in
    0) run=runs/demo-seed-0; program=(finetune task=qa seed=0) ;;
    1) run=runs/demo-seed-1; program=(finetune task=qa seed=1) ;;
esac
