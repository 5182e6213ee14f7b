#!/bin/bash
# Prepare text on many machines of a Slurm cluster: each task of the array writes one part.
#
#   array=$(sbatch --parsable examples/slurm_parts.sh my_texts/ data/parts)
#   sbatch --dependency=afterok:$array --wrap \
#       ".venv/bin/python -m data_tools.fineweb --merge data/parts --out data/mine"
#
# If some tasks failed, repeat them, then the merge, whose dependency cannot be met any more:
#
#   array=$(sbatch --parsable --array=3,6 examples/slurm_parts.sh my_texts/ data/parts)
#
#SBATCH --job-name=parts --array=0-7 --cpus-per-task=16 --requeue

# Not SLURM_ARRAY_TASK_COUNT, which is smaller where only some tasks are repeated.
PARTS=8

exec .venv/bin/python -m data_tools.fineweb --source "$1" --parts "$2" \
    --part "$SLURM_ARRAY_TASK_ID/$PARTS"
