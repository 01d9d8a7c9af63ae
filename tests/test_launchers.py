"""What launches training elsewhere: the launcher config of several machines, and Slurm jobs."""

import os
import re
import subprocess

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import prepare_multi_gpu_env

from tests.conftest import ROOT, run_script


def test_several_machines_are_launched():
    """What `accelerate launch --config_file` makes of the launcher config."""
    path = ROOT / "configs" / "accelerate" / "multi_node.yaml"
    options = ["--config_file", str(path), "--main_process_ip", "10.0.0.1", "train_tokenizer.py"]
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(options))
    prepare_multi_gpu_env(arguments)
    assert arguments.multi_gpu and not arguments.use_fsdp and not arguments.use_deepspeed
    assert (arguments.nnodes, arguments.nproc_per_node) == ("2", "8")
    assert arguments.rdzv_endpoint == "10.0.0.1:29500"


@pytest.mark.parametrize(
    ("job", "arguments", "expected"),
    [
        ("extract", ["--limit", "10"], ["--shard 3/16", "--limit 10"]),
        (
            "train_tokenizer",
            ["configs/mae_64.yaml"],
            ["--num_machines 2 --num_processes 16", "--machine_rank 1"],
        ),
        ("pretokenize", ["configs/maskgit_mae_64.yaml"], ["--num_processes 8", "--shard 3/16"]),
        ("train_generator", ["configs/maskgit_mae_64.yaml"], ["--main_process_ip first"]),
        ("evaluate", ["runs/mae_64"], ["--run runs/mae_64"]),
    ],
)
def test_slurm_jobs_run_commands_that_exist(tmp_path, job, arguments, expected):
    """With Slurm and the launcher stood in for by scripts that say what they are asked."""
    stubs = {
        "srun": 'shift; SLURM_NODEID=1 exec "$@"',
        "scontrol": "echo first; echo second",
        "accelerate": 'echo "$@"',
        "python": 'echo "$@"',
    }
    for name, text in stubs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "activate").touch()
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "ENV": str(tmp_path)}
    environment |= {"SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_NODELIST": "node[1-2]"}
    environment |= {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "16", "SLURM_CPUS_PER_TASK": "64"}
    done = subprocess.run(
        ["bash", f"slurm/{job}.sbatch", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    for text in expected:
        assert text in done.stdout
    script, options = re.search(r"(\w+\.py)(.*)", done.stdout).groups()
    known = run_script(script, "--help")
    for option in re.findall(r"--[\w-]+", options):
        assert f"{option} " in known or f"{option}\n" in known or f"{option}]" in known, (script, option)
