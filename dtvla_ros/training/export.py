"""From a training run, or from a policy, to a policy folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dtvla_ros.data.reader import open_dataset
from dtvla_ros.engine.export import Parity, export_policy, record_proof
from dtvla_ros.errors import UserError
from dtvla_ros.evaluation.results import versions
from dtvla_ros.files import read_json, write_text
from dtvla_ros.policy.adapters import CONFIG as ADAPTER
from dtvla_ros.policy.adapters import local_base, read_adapter
from dtvla_ros.policy.checkpoint import Stored, load_model
from dtvla_ros.policy.manifest import (
    GRAPHS,
    MANIFEST,
    PROOF,
    ImageContract,
    PolicyManifest,
    sha256,
)
from dtvla_ros.policy.model import HybridDecoder
from dtvla_ros.policy.transform import PolicyTransform, read_transform, transform_of
from dtvla_ros.training.checkpoint import ORIGIN, WEIGHTS, read_tasks
from dtvla_ros.training.observations import own_observations, sample


def export(source: Path, out: Path | None = None, name: str | None = None,
           replan_steps: int | None = None, success: Path | None = None,
           weights: str = 'fp32', observations: Sequence[Path] = (),
           average_with: Sequence[Path] = (),
           done_margin: float | None = None) -> tuple[Path, Parity]:
    """Export a training run or a policy folder; return where to, and the measured parity.

    ``out`` None: ``models/nano`` for a small policy's run, ``models/RUN`` for one begun with a
    released policy, beside the policy for a policy. ``name``, ``replan_steps`` (actions executed
    before the next decision), ``success`` (the JSON of an evaluation, whose table goes into the
    manifest) and ``done_margin`` (as of `PolicyManifest`) None: as usual, or as the policy has
    them. ``weights`` one of ``quantize.KINDS``, or 'auto' for the fastest on this CPU.
    ``observations``: datasets whose frames the policy will prove itself on; none: those that
    ``source`` has, if any. ``average_with``: runs or policies whose weights count as much as those
    of ``source``. Raises ``UserError`` when one is neither or does not fit the other, or when the
    graphs do not agree with the model.
    """
    model, transform, manifest = read_source(source)
    if average_with:
        _average(model, transform, source, average_with)
    proof = (sample([open_dataset(path) for path in observations], transform) if observations
             else own_observations(source, transform))
    if weights == 'auto':
        from dtvla_ros.engine.bench import fastest_weights

        weights = fastest_weights(model, manifest.max_thought_tokens)
    out = out or (source.with_name(f'{source.name}-{weights}') if _is_policy(source)
                  else Path('models') / manifest.name)
    if out.resolve() == source.resolve() and GRAPHS[0] not in manifest.files:
        raise UserError(f'{out}: exporting would replace the checkpoint itself; choose another '
                        'folder with --out')
    manifest = replace(
        manifest, name=name or manifest.name,
        success=_table(success) if success else manifest.success,
        done_margin=manifest.done_margin if done_margin is None else done_margin, action=replace(
            manifest.action, replan_steps=replan_steps or manifest.action.replan_steps))
    return out, export_policy(model, transform, out, manifest, weights, proof)


@torch.no_grad()
def _average(model: HybridDecoder, transform: PolicyTransform, source: Path,
             others: Sequence[Path]) -> None:
    """Give ``model`` the mean of its weights and the others' (model soups, arXiv:2203.05482).

    That is a policy only where all were fine-tuned from the same one, which nothing here can
    tell. Raises ``UserError`` where what a weight stands for differs.
    """
    total = {name: value.double() for name, value in model.state_dict().items()}
    for folder in others:
        other, its, _ = read_source(folder)
        for what, one, two in (
                ('another vocabulary', its.tokenizer.get_vocab(), transform.tokenizer.get_vocab()),
                ('another size', its.config, transform.config),
                ('other action statistics', its.statistics, transform.statistics),
                ('another action contract', its.contract, replace(
                    transform.contract, replan_steps=its.contract.replan_steps))):
            if one != two:
                raise UserError(f'{folder}: {what} than {source}; only policies fine-tuned from '
                                'the same one can be averaged')
        for name, value in other.state_dict().items():
            total[name] += value
    for name, value in model.state_dict().items():
        value.copy_(total[name] / (1 + len(others)))


def add_proof(folder: Path, observations: Sequence[Path]) -> None:
    """Give a float32 policy observations to prove itself on; its other files stay as they are.

    ``observations``: datasets. Raises ``UserError`` if it is no policy, or its graphs disagree.
    """
    if not (_is_policy(folder) and observations):
        raise UserError(f'{folder}: --proof-only is for a policy, with --observations DATASET')
    model, transform, manifest = read_source(folder)
    shares = record_proof(model.float().eval(), transform, folder, manifest, sample(
        [open_dataset(path) for path in observations], transform))
    write_text(folder / MANIFEST, replace(manifest, proof=shares, files={
        **manifest.files, PROOF: sha256(folder / PROOF)}).to_json())


def _is_policy(folder: Path) -> bool:
    return (folder / MANIFEST).exists()


def read_source(folder: Path) -> tuple[HybridDecoder, PolicyTransform, PolicyManifest]:
    """Return model, transform and manifest of a run or a policy folder. Raises ``UserError``."""
    if not _is_policy(folder):
        return _read_run(folder)
    manifest = PolicyManifest.read(folder)
    if manifest.weights != 'fp32':
        raise UserError(f'{folder}: its weights are {manifest.weights} already; export the policy '
                        'it was made from')
    transform = transform_of(folder, manifest)
    return load_model(manifest.config, manifest.verified_weights(folder)), transform, manifest


def _read_run(run: Path) -> tuple[HybridDecoder, PolicyTransform, PolicyManifest]:
    """Return the averaged weights of a training run, adapters merged, and its manifest."""
    transform = read_transform(run)
    if (run / ADAPTER).exists():
        adapter, model = read_adapter(run), read_source(local_base(run))[0]
        state = model.state_dict()
        adapter.check({name: Stored(run, name, tuple(value.shape), str(value.dtype))
                       for name, value in state.items()})
        for name in (*adapter.updates, *adapter.replaced):
            state[name].copy_(adapter.merged(name, state[name]))
    else:
        model = load_model(transform.config, run / WEIGHTS)
    if (run / ORIGIN / MANIFEST).exists():
        origin = PolicyManifest.read(run / ORIGIN)
        return model, transform, replace(
            origin, name=run.resolve().name, config=transform.config,
            statistics=transform.statistics, calibration=None,
            images=replace(origin.images, sizes=transform.sizes), **read_tasks(run))
    usual, installed = transform.contract, versions()
    return model, transform, PolicyManifest(
        name='nano', license='Apache-2.0', config=transform.config,
        statistics=transform.statistics, files={}, **read_tasks(run),
        images=ImageContract(sizes=transform.sizes),
        action=replace(usual, replan_steps=min(usual.replan_steps, transform.config.chunk_steps)),
        simulator={k: v for k, v in installed.items() if k in ('mujoco', 'robosuite')})


def _table(path: Path) -> dict[str, Any]:
    """Return the table of an evaluation, without its single episodes."""
    remedy = 'write one with dtvla eval --json'
    summary = read_json(path, remedy)
    if not {'tasks', 'total'} <= summary.keys():
        raise UserError(f'{path}: not the JSON of an evaluation; {remedy}')
    return {key: summary[key] for key in ('tasks', 'total')}
