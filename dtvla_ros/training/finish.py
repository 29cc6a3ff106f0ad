"""From a training run to a policy folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from dtvla_ros.engine.export import export_policy
from dtvla_ros.engine.parity import Parity
from dtvla_ros.errors import UserError
from dtvla_ros.evaluation.report import versions
from dtvla_ros.policy.checkpoint import load_weights
from dtvla_ros.policy.decoder import HybridDecoder
from dtvla_ros.policy.manifest import ActionContract, PolicyManifest
from dtvla_ros.training import run_state

SIMULATOR = ('mujoco', 'robosuite')


def export_run(
    run: Path, out: Path, name: str, replan_steps: int | None = None, success: Path | None = None,
) -> Parity:
    """Export the averaged weights of a run; return what the parity gate measured.

    ``replan_steps``: actions executed before the next decision (None: as usual). ``success``:
    the JSON of an evaluation, whose table goes into the manifest. Raises ``UserError`` when the
    run is not one, or when the exported graphs do not agree with it.
    """
    transform = run_state.read_transform(run)
    table = _table(success) if success else {}
    model = HybridDecoder(transform.config)
    load_weights(model, run / run_state.WEIGHTS)
    contract = ActionContract()
    steps = replan_steps or min(contract.replan_steps, transform.config.chunk_steps)
    installed = versions()
    manifest = PolicyManifest(
        name=name, license='Apache-2.0', config=transform.config,
        statistics=transform.statistics, files={}, action=replace(contract, replan_steps=steps),
        simulator={package: installed[package] for package in SIMULATOR if package in installed},
        success=table)
    return export_policy(model, transform, out, manifest)


def _table(path: Path) -> dict[str, Any]:
    """Return the table of an evaluation, without its single episodes."""
    try:
        summary = json.loads(path.read_text())
        return {key: summary[key] for key in ('tasks', 'total')}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f'{path}: not the JSON of an evaluation ({error}); '
                        'write one with dtvla eval --json') from error
