
# From here on every job is the same.

newest() { # the newest checkpoint of the run, or nothing
    ls "$run/checkpoints" 2> /dev/null | grep -Ex 'step-[0-9]{8}' | sort | tail -n 1
}

idle_starts() { # how often this job has begun at what is now the newest checkpoint
    grep -cxF "$job $(newest)" "$starts"
}

# Ahead of the time limit comes USR1, where the job has to go TERM: all ranks save and end. srun passes USR1 on to
# every node; at a TERM it would kill them.
step=
trap '[ -z "$step" ] || kill -s USR1 "$step" 2> /dev/null' USR1 TERM

job=$SLURM_JOB_ID # under which Slurm knows this job alone: the last of an array has the number of the array, too
[ -z "${SLURM_ARRAY_JOB_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
starts=$run/slurm/starts.txt
mkdir -p "$run/slurm" && touch "$starts" || exit 2
if [ "$(idle_starts)" -ge "$max_idle_starts" ]; then # Slurm requeues by itself where a node fails
    echo "job $job: began $max_idle_starts times without a new checkpoint and does not begin again; see $run/ranks"
    exit 7
fi
from=$(newest)
echo "$job $from" >> "$starts"

nodes= # as many of those that Slurm gave as can share a step
given=${SLURM_JOB_NUM_NODES:-${node_counts[0]}}
for count in "${node_counts[@]}"; do
    [ -n "$nodes" ] || [ "$count" -gt "$given" ] || nodes=$count
done
[ "$nodes" = "${node_counts[0]}" ] || echo "job $job: ${node_counts[0]} nodes were asked for, Slurm gave $given; runs on $nodes"
[ "$nodes" = "$given" ] || step_options+=("--nodes=$nodes" "--ntasks=$nodes" --relative=0)

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
if ! getent hosts "$first" > /dev/null; then # a name that only Slurm knows
    first=$(scontrol show node "$first" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
fi
port=$((10000 + SLURM_JOB_ID % 20000))
while (exec 3<> "/dev/tcp/127.0.0.1/$port") 2> /dev/null; do # something listens there; this is the first node
    port=$((port + 1))
done
export MASTER_ADDR=$first MASTER_PORT=$port

echo "job $job: restart ${SLURM_RESTART_COUNT:-0} of $run on $SLURM_JOB_NODELIST, from ${from:-the beginning}"
srun --ntasks-per-node=1 --kill-on-bad-exit=1 --wait=60 --cpu-bind=none "${step_options[@]}" "${container[@]}" \
    "$python" -m launch.slurm.node --nproc "$nproc" --logs "$run/ranks" -- "$python" -m "${program[@]}" &
step=$!
while kill -0 "$step" 2> /dev/null; do # a signal ends the waiting, not the step
    wait "$step"
done
wait "$step"
code=$?
# srun ends with the highest code of its nodes, which launch/slurm/node.py has put into an order for that.
[ "$code" -ne 90 ] || code=7
[ "$code" -lt 100 ] || [ "$code" -gt 127 ] || code=$((code - 100))

case $code in
    85 | 6 | 7 | 137 | 143) ;; # asked to stop, hung, a rank or node lost, killed: another start may get further
    *) exit "$code" ;;
esac
if [ "$requeue" = no ]; then
    echo "job $job: ended with $code; run it again with the same run.name to resume from the newest checkpoint"
elif [ "$(squeue --noheader --jobs="$job" --format=%T)" != RUNNING ]; then
    echo "job $job: ended with $code; Slurm itself cancels or requeues it" # one that is cancelled must not return
elif [ "${SLURM_RESTART_COUNT:-0}" -ge "$max_restarts" ]; then
    echo "job $job: ended with $code after $max_restarts restarts, as many as it may have"
elif [ "$(idle_starts)" -ge "$max_idle_starts" ]; then
    echo "job $job: ended with $code and began $max_idle_starts times without a new checkpoint; not requeued"
else
    echo "job $job: ended with $code and is requeued"
    trap '' TERM
    scontrol requeue "$job"
fi
exit "$code"
