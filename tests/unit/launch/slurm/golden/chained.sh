#!/bin/bash -l
# Written by `python -m launch`. To submit it again: cd to its folder, sbatch and its name.
#SBATCH --job-name=bert
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --signal=B:USR1@600
#SBATCH --output=%j.out
#SBATCH --no-requeue
#SBATCH --open-mode=append

cd '/shared/my project' || exit 2
set -u

nproc=8
requeue=no
max_restarts=100
max_idle_starts=3
python=python3
node_counts=(2)
step_options=('--container-image=registry#team/headwater:1' --container-mounts=/data:/data,/scratch '--container-workdir=/shared/my project')
container=()
run=/runs/bert
program=(pretrain)
