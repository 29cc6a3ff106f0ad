"""A released policy's stand-in and a dataset for it; run as a module, a few steps of training.

The module is what a test gives to ``accelerate launch``: it prints the losses as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import DistributedType, PartialState
from accelerate.state import AcceleratorState

from dtvla_ros.data import layout
from dtvla_ros.policy.convert import convert
from dtvla_ros.training.config import AdapterConfig, Rates, SftConfig
from dtvla_ros.training.sft import SftRun, Trainer
from support.released import write_checkpoint
from support.tiny import tiny_episode, write_dataset

CHUNK = 10
THOUGHTS = ('The gripper holds the butter.', 'push', 'The red cube lies on the plate; push it '
            'until the gripper is over the plate.')
CONFIG = SftConfig(batch_size=4, learning_rate=3e-3, warmup_steps=2, ema=0.0, shift=(1, 1),
                   precision='no', validation_share=0.2, action_sigma=0.0, thought_weight=1.0)
LORA = replace(CONFIG, lora=AdapterConfig(rank=4, alpha=8, dropout=0.1),
               rates=Rates(vision=0.0, projector=0.5))


def released_policy(folder: Path) -> Path:
    """Convert a tiny checkpoint of the released layout."""
    write_checkpoint(folder / 'download')
    convert(folder / 'download', license='none', out=folder / 'policy')
    return folder / 'policy'


def released_dataset(folder: Path, episodes: int = 6) -> Path:
    """Write episodes with chunks of ten actions and thoughts in plain English, of no places."""
    made = []
    for number in range(episodes):
        episode = tiny_episode(number)
        columns = episode.columns
        for key, width in ((layout.ACTION_CHUNK, 7), (layout.ACTION_IS_PAD, 1)):
            chunk = np.asarray(columns[key])
            columns[key] = np.concatenate([chunk, chunk[:, -2 * width:]], 1)
        columns[layout.REASONING] = [THOUGHTS[(number + k) % 3] for k in range(len(episode))]
        made.append(episode)
    return write_dataset(folder, made, (layout.PLACES, layout.POINTS))


def losses(config: SftConfig, run: SftRun, steps: int, save: bool = False) -> list[float]:
    """Train for some steps and return their losses."""
    trainer = Trainer(config, run)
    out = [trainer.train_step(*trainer.draw(trainer.step))['loss'].item() for _ in range(steps)]
    if save:
        trainer.save()
    trainer.accelerator.wait_for_everyone()
    return out


if __name__ == '__main__':
    torch.set_num_threads(1)
    sharded = os.environ.get('ACCELERATE_USE_FSDP') == 'true'
    if sharded:  # accelerate shards on GPUs only
        PartialState(cpu=True)
        PartialState._shared_state['distributed_type'] = DistributedType.MULTI_GPU
    config = SftConfig.from_dict(json.loads(sys.argv[1]))
    data, init, out, losses_json = map(Path, sys.argv[2:6])
    run = SftRun((data,), out, init=init, steps=10)
    measured = losses(config, run, int(sys.argv[6]), save=True)
    assert AcceleratorState().is_fsdp2 == sharded
    if os.environ.get('RANK', '0') == '0':
        losses_json.write_text(json.dumps(measured))
