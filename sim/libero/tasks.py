"""The suites' tasks in the benchmark's order, and their recorded initial states."""

from __future__ import annotations

import codecs
import importlib.util
import pickle
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtvla_ros.errors import UserError

from .package import root

# Control steps after settling; those of the published evaluations (libero_90: OpenVLA's).
STEP_LIMITS = {'libero_spatial': 220, 'libero_object': 280, 'libero_goal': 300, 'libero_10': 520,
               'libero_90': 400}
WORKSPACES = frozenset({'table', 'kitchen_table', 'living_room_table', 'study_table', 'floor',
                        'coffee_table'})


@dataclass(frozen=True, slots=True)
class LiberoTask:
    """One task: its name, the sentence the policy is given, and its files."""

    name: str
    instruction: str
    bddl: Path
    init_states: Path


def suite_tasks(suite: str) -> dict[str, LiberoTask]:
    """Return the tasks of a suite by name, in the benchmark's order.

    Raises UserError if hf-libero is not installed, or without this suite's files.
    """
    base = root()
    # By path: the package it is in imports torch.
    path = base / 'benchmark' / 'libero_suite_task_map.py'
    spec = importlib.util.spec_from_file_location('libero_suite_task_map', path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tasks = {}
    for name in module.libero_task_map[suite]:
        bddl = base / 'bddl_files' / suite / f'{name}.bddl'
        if not bddl.is_file():
            raise UserError(f'{bddl}: no such file; install hf-libero again')
        sentence = re.sub(r'^[A-Z_]+SCENE\d+_', '', name).replace('_', ' ')
        tasks[name] = LiberoTask(
            name, sentence, bddl, base / 'init_files' / suite / f'{name}.pruned_init')
    return tasks


@dataclass(frozen=True, slots=True)
class Problem:
    """A task's file: objects and fixtures (without the workspace), regions, goals."""

    objects: tuple[str, ...]
    regions: tuple[str, ...]
    goals: tuple[tuple[str, ...], ...]

    @property
    def named(self) -> tuple[str, ...]:
        """The objects and regions that the goals are about."""
        return tuple(name for goal in self.goals for name in goal[1:])


def read_problem(path: Path) -> Problem:
    """Read a BDDL file."""
    from libero.libero.envs.bddl_utils import robosuite_parse_problem

    parsed = robosuite_parse_problem(str(path))
    kinds = {**parsed['objects'], **parsed['fixtures']}
    objects = tuple(n for kind, names in kinds.items() if kind not in WORKSPACES for n in names)
    return Problem(objects, tuple(parsed['regions']),
                   tuple(tuple(map(str, goal)) for goal in parsed['goal_state']))


class _ArraysOnly(pickle.Unpickler):
    """The files were written by torch.save, but hold one NumPy array and need no torch."""

    # By name alone: NumPy 2 renamed a module.
    parts = {part.__name__: part for part in (
        np.empty(0).__reduce__()[0], np.ndarray, np.dtype, codecs.encode)}

    def find_class(self, module: str, name: str) -> Any:
        if name not in self.parts:
            raise pickle.UnpicklingError(f'{module}.{name} is not part of an array')
        return self.parts[name]


def read_init_states(path: Path) -> NDArray[np.float64]:
    """Return the benchmark's initial states [n, 1 + nq + nv] (time, positions, velocities).

    Raises UserError if the file is missing or holds anything but an array.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.endswith('data.pkl'))
            with archive.open(name) as file:
                return np.asarray(_ArraysOnly(file).load(), np.float64)
    except (OSError, zipfile.BadZipFile, StopIteration, pickle.UnpicklingError) as error:
        raise UserError(f'{path}: not a file of initial states ({error}); '
                        'install hf-libero again') from error
