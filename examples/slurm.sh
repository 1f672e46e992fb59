#!/bin/bash
# Train on several nodes of a SLURM cluster: sbatch examples/slurm.sh
#
# One task per node starts torchrun, which starts a process per GPU. A job that is requeued, or sent again, goes on from
# the run's last checkpoint; a process that dies is started anew up to three times without SLURM's help. The folder of
# the run must be one that all nodes see.
#SBATCH --job-name=vision-ssm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=48:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@180
#SBATCH --open-mode=append

set -euo pipefail

DATA=${DATA:-/data/imagenet}
RUNS=${RUNS:-runs}
NAME=${NAME:-vim_tiny}

head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
resume=()
if [ -e "$RUNS/$NAME/config.yaml" ]; then
    resume=(--resume)
fi

# SLURM's signal, three minutes before the end, reaches torchrun, which passes it on: its processes end their update, write
# the state and leave. torchrun kills what has not left by then: after two minutes here, after 30 seconds before torch
# 2.12, which does not know this variable. What a kill costs is the time since the last checkpoint (run.checkpoint_minutes).
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=120
srun --kill-on-bad-exit=1 torchrun \
    --nnodes "$SLURM_NNODES" --nproc-per-node 8 --max-restarts 3 \
    --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$head_node:29500" \
    -m vision_ssm train "$DATA" --recipe vim_tiny_imagenet \
    --run.output "$RUNS" --name "$NAME" --amp "${resume[@]}"
