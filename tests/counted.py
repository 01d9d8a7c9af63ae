"""Runs a script as a launcher starts it, and prints how many processes accelerate has found."""

import os
import runpy
import sys
from pathlib import Path

import torch
from accelerate import PartialState

if __name__ == "__main__":
    if not torch.cuda.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.stdout.write(f"one of {PartialState._shared_state['num_processes']} processes\n")  # at one go
