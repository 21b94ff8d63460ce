#!/bin/bash -l
# Written by `python -m launch`. To submit it again: cd to its folder, sbatch and its name.
#SBATCH --job-name=llama
#SBATCH --partition=h100
#SBATCH --account=nlp@lab
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=1-00:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --output=%j.out
#SBATCH --qos=high
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --requeue
#SBATCH --open-mode=append

cd '/shared/my project' || exit 2
module load cuda/12.8 || exit 2
module load gcc || exit 2
source '/shared/ada'"'"'s envs/headwater/bin/activate' || exit 2
export NCCL_SOCKET_IFNAME=ib0
export NCCL_DEBUG=WARN
set -u

nproc=8
requeue=yes
max_restarts=100
max_idle_starts=3
python=python
node_counts=(4)
step_options=(--cpus-per-task=96)
container=()
run=runs/llama
program=(pretrain experiment=llama_1b run.name=llama)
