"""A run on the toy suite, as a process that can be killed: practise INIT OUT ITERATIONS."""

import sys
from pathlib import Path

if __name__ == '__main__':
    # Simulators import this file again; they shall not import torch.
    import torch

    from dtvla_ros.rollout.workers import open_envs
    from dtvla_ros.training.grpo.train import GrpoRun, train_grpo
    from support.small import CONFIG
    from support.toy import ToyScene

    torch.set_num_threads(1)
    init, out, iterations = sys.argv[1:]
    run = GrpoRun(Path(init), Path(out), int(iterations), replan_steps=2)
    train_grpo(CONFIG, run, pool=open_envs(ToyScene(), 2))
