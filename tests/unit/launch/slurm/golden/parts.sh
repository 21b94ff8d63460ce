#!/bin/bash -l
# Written by `python -m launch`. To submit it again: cd to its folder, sbatch and its name.
#SBATCH --job-name=prepare-parts
#SBATCH --partition=h100
#SBATCH --account=nlp@lab
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=96
#SBATCH --time=1-00:00:00
#SBATCH --array=0-15
#SBATCH --output=%A_%a.out
#SBATCH --qos=high
#SBATCH --exclusive
#SBATCH --mem=0

cd '/shared/my project' || exit 2
module load cuda/12.8 || exit 2
module load gcc || exit 2
source '/shared/ada'"'"'s envs/headwater/bin/activate' || exit 2
export NCCL_SOCKET_IFNAME=ib0
export NCCL_DEBUG=WARN
set -u

srun --ntasks=1 --cpu-bind=none --cpus-per-task=96 python -m pretrain.prepare data=jsonl data.prepare.parts=16 data.prepare.part="$SLURM_ARRAY_TASK_ID" --config-dir own
