# Sourced by the job scripts: `launch SCRIPT OPTIONS…` runs a script under accelerate, a process on every GPU of the job.
#
# Shortly before its time is up (--signal=B:USR1@600) the script is asked to stop, writes a checkpoint, and the job
# is queued again, where it goes on.

source "${ENV:-.venv}/bin/activate"
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=540 # seconds for the checkpoint; the launcher kills after 30 otherwise
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun doesn't take it from the job

launch() {
    local first stopped= step
    first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    trap 'stopped=yes; kill -TERM "$step"' USR1
    # One launcher a machine. SLURM_NODEID differs on each, so that it is left to the shell there.
    srun --ntasks-per-node=1 bash -c 'exec accelerate launch --machine_rank "$SLURM_NODEID" "$@"' launch \
        --config_file configs/accelerate/multi_node.yaml --main_process_ip "$first" \
        --num_machines "$SLURM_NNODES" --num_processes $((SLURM_NNODES * SLURM_GPUS_ON_NODE)) "$@" &
    step=$!
    wait "$step"
    local status=$?
    if [ -n "$stopped" ]; then
        wait "$step" # the signal ended the first one
        scontrol requeue "$SLURM_JOB_ID"
    fi
    return "$status"
}
