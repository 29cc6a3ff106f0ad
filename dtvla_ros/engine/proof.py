"""Recorded observations with which a policy proves that it computes here what was exported.

The policy folder's ``proof.safetensors`` holds, for N observations, images, gripper state and
instruction, the thought that the exported float32 model wrote, and its action tokens. An engine is
given each recorded thought and must choose the same next token after every one, and the same
action bins, as often as the manifest's ``proof`` says. It is asked as it will run, on its device
or provider and in its type: by whole passes, and again, for some tokens, word by word.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dtvla_ros.engine.policy import Policy, encode
from dtvla_ros.engine.providers import describe
from dtvla_ros.errors import OutOfMemory, UserError
from dtvla_ros.files import written_whole
from dtvla_ros.policy.manifest import PROOF, PolicyManifest
from dtvla_ros.policy.transform import Observation, PolicyTransform

OBSERVATIONS = 24  # recorded at export
LOAD_SECONDS = 1.5  # after which loading leaves it at the observations proved so far
FEWEST = 4  # of them, however long they take
EXACT, MARGIN = 0.99, 0.02  # wanted of float32; less than at the export allowed to coarser types
_WRITTEN = 6  # tokens of each thought that are asked for one by one, at most
_NOTHING = -1  # behind the end of a thought
_INSTRUCTIONS = 'instructions'
_HALVED = {'bfloat16', 'float16', 'fp8'}  # words of an engine's ``where``


class Agreement(NamedTuple):
    """Shares of thought tokens equal and of action values within one bin; seconds it took.

    ``tokens`` is the mean of two shares: of those one pass chooses, of those written one by one.
    """

    tokens: float
    bins: float
    observations: int
    seconds: float

    def reaches(self, wanted: Agreement) -> bool:
        return self.tokens >= wanted.tokens and self.bins >= wanted.bins

    def __str__(self) -> str:
        return (f'{self.tokens:.2%} of the thought tokens equal, {self.bins:.2%} of the action '
                'values within one bin')


@dataclass(frozen=True, slots=True)
class Proof:
    """N observations, images as large as the policy takes them, and what was made of them.

    ``thoughts`` [N, W] ids with tags, -1 behind their end; ``actions`` [N, T*D] ids. Both are
    empty, [N, 0], where nothing was made of the observations yet.
    """

    observations: Sequence[Observation]
    thoughts: NDArray[np.int64]
    actions: NDArray[np.int64]

    @classmethod
    def of(cls, observations: Sequence[Observation], transform: PolicyTransform) -> Proof:
        """Return observations alone, their images resized for a policy."""
        cameras = transform.config.vision.cameras
        none = np.zeros((len(observations), 0), np.int64)
        return cls([Observation(
            {name: transform.resize(name, o.images[name]) for name in cameras}, {},
            o.ee_position, o.ee_quaternion, o.gripper_opening, o.instruction, 0.0)
            for o in observations], none, none)

    def decided_by(self, policy: Policy) -> Proof:
        """Return the same observations with the thoughts and actions of a policy."""
        thoughts, actions = [], []
        for observation in self.observations:
            policy.reset()
            decision = policy.infer(observation)
            end = None if decision.outcome == 'complete' else -1  # a tag that it did not write
            thoughts.append(decision.thought_tokens[:end])
            actions.append(decision.action_tokens)
        padded = np.full((len(thoughts), max(map(len, thoughts))), _NOTHING)
        for row, thought in zip(padded, thoughts):
            row[:len(thought)] = thought
        return Proof(self.observations, padded, np.stack(actions))

    def write(self, path: Path) -> None:
        images = {f'images.{name}': np.stack([o.images[name] for o in self.observations])
                  for name in self.observations[0].images}
        state = np.stack([np.hstack([o.ee_position, o.ee_quaternion, o.gripper_opening])
                          for o in self.observations])
        tensors = {**images, 'state': state, 'thoughts': self.thoughts, 'actions': self.actions}
        said = json.dumps([o.instruction for o in self.observations])
        with written_whole(path) as part:
            save_file(tensors, part, {_INSTRUCTIONS: said})
            part.chmod(0o644)  # the library makes it private

    @classmethod
    def read(cls, path: Path, transform: PolicyTransform) -> Proof:
        """Read what was recorded for a policy. Raises ``UserError`` if it does not fit it."""
        config, size = transform.config, transform.config.vision.image_size
        try:
            with safe_open(path, 'np') as file:
                said = json.loads((file.metadata() or {})[_INSTRUCTIONS])
                images = {name: file.get_tensor(f'images.{name}')
                          for name in config.vision.cameras}
                state, thoughts, actions = map(file.get_tensor, ('state', 'thoughts', 'actions'))
            n = len(said)
            for name, array, shape, kind in (
                    *((name, array, (n, size, size, 3), 'u') for name, array in images.items()),
                    ('state', state, (n, 8), 'f'), ('thoughts', thoughts, (n, None), 'i'),
                    ('actions', actions, (n, config.slots if thoughts.size else 0), 'i')):
                fits = array.ndim == len(shape) and array.dtype.kind == kind and all(
                    want in (None, have) for want, have in zip(shape, array.shape))
                if not fits or not n:
                    raise ValueError(f'{name}: {array.dtype} {list(array.shape)}')
            if thoughts.size and not ((thoughts[:, 0] == config.ids.think).all() and (
                    thoughts < config.text.vocabulary).all() and (actions >= 0).all()):
                raise ValueError('thoughts are not of its vocabulary')
            return cls([Observation(
                {name: array[k] for name, array in images.items()}, {}, state[k, :3],
                state[k, 3:7], float(state[k, 7]), str(said[k]), 0.0) for k in range(n)],
                thoughts, actions)
        except (OSError, ValueError, LookupError, TypeError, SafetensorError,
                RecursionError) as error:
            raise UserError(f'{path}: not the recorded observations of this policy ({error}); '
                            'copy the policy again, or export it again') from None

    def check(self, policy: Policy, seconds: float = math.inf) -> Agreement:
        """Return how far a policy's engine agrees, over what fits into ``seconds``.

        Raises ``UserError`` where nothing was recorded, the engine fails, or the policy refuses an
        observation.
        """
        if not self.thoughts.size:
            raise UserError('no thoughts are recorded with the observations; export it again')
        started = time.perf_counter()
        right: list[NDArray[np.bool_]] = []
        one_by_one: list[bool] = []
        near: list[NDArray[np.bool_]] = []
        try:
            for number, observation in enumerate(self.observations):
                if number >= FEWEST and time.perf_counter() - started > seconds:
                    break
                thought = self.thoughts[number]
                tokens, written, bins = _compare(
                    policy, observation, thought[thought != _NOTHING].tolist(),
                    self.actions[number])
                right.append(tokens)
                one_by_one += written
                near.append(bins)
        except OutOfMemory:
            raise
        except UserError as error:
            raise UserError(f'a recorded observation is refused ({error}); copy the policy again'
                            ) from None
        except Exception as error:  # the runtimes' exceptions share no narrower base
            raise UserError(f'the engine {_name(policy)} fails at a recorded observation '
                            f'({_first_line(error)}); copy the policy again, or use another '
                            'engine or device') from None
        tokens_equal = (np.concatenate(right).mean() + np.mean(one_by_one)) / 2
        return Agreement(float(tokens_equal), float(np.concatenate(near).mean()), len(near),
                         time.perf_counter() - started)


def _compare(
    policy: Policy, observation: Observation, thought: list[int], actions: NDArray[np.int64],
) -> tuple[NDArray[np.bool_], list[bool], NDArray[np.bool_]]:
    """Return which tokens [len(thought) - 1] and which written ones are equal, and which bins.

    Tokens are those of one pass over the thought; ``_WRITTEN`` of them are asked for again by what
    writes thoughts, whose passes of one row may be other kernels. Bins [T*D] count within one.
    """
    ids, engine = policy.transform.config.ids, policy.engine
    prompt, features = encode(engine, policy.transform, observation)
    chosen, cache = engine.prefill(prompt, features, thought[:-1])
    closing = [] if thought[-1] == ids.think_end else [ids.think_end]
    scores = engine.decode_actions(cache, [thought[-1], *closing, ids.action])
    found = scores.argmax(-1) + ids.bins_first
    near = (np.abs(found - actions) <= 1) & np.isfinite(scores).all(-1)
    written = []
    # The last one first: what an engine computes ahead lies in rows that are not asked for again.
    for k in np.unique(np.linspace(len(thought) - 1, 1, _WRITTEN, dtype=int))[::-1].tolist():
        tokens = thought[:k]
        engine.generate(engine.crop(cache, len(thought) - k), tokens, lambda _: True)
        written.append(tokens[-1] == thought[k])
    return chosen.ids[1:] == thought[1:], written, near


def wanted(manifest: PolicyManifest, halved: bool = False) -> Agreement:
    """Return what is asked of an engine: as at the export, less for weights of fewer bits.

    ``halved``: the engine calculates in a type of sixteen bits or less.
    """
    exact = manifest.weights == 'fp32'
    tokens, bins = (EXACT if exact else manifest.proof.get(what, 1.0)
                    for what in ('tokens', 'bins'))
    less = 0.0 if exact and not halved else MARGIN
    return Agreement(tokens - less, bins - less, 0, 0.0)


def require(folder: Path, policy: Policy, manifest: PolicyManifest,
            seconds: float = LOAD_SECONDS) -> Agreement | None:
    """Let a loaded policy prove itself; return None if it carries no proof.

    Raises ``UserError`` naming engine, CPU and agreement where it computes something else.
    """
    if PROOF not in manifest.files:
        return None
    proof = Proof.read(folder / PROOF, policy.transform)
    try:
        found = proof.check(policy, seconds)
    except UserError as error:
        raise UserError(f'{folder}: {error}') from None
    want = wanted(manifest, not _HALVED.isdisjoint(policy.engine.where.split()))
    if not found.reaches(want):
        raise UserError(
            f'{folder}: the engine {_name(policy)}{_place(policy)} does not compute '
            f'the exported policy: {found} over {found.observations} recorded observations, '
            f'wanted {want.tokens:.0%} and {want.bins:.0%}; {_remedy(policy, manifest)}; '
            f'"dtvla inspect {folder} --prove" tries all engines')
    return found


def _first_line(error: Exception) -> str:
    return f'{type(error).__name__} {error}'.strip().splitlines()[0][:200]


def _name(policy: Policy) -> str:
    return f'{policy.engine.name}, {policy.engine.where}'


def _on_cpu(policy: Policy) -> bool:
    return 'cpu' in policy.engine.where.lower()


def _place(policy: Policy) -> str:
    return f' on this CPU ({describe()})' if _on_cpu(policy) else ''


def _remedy(policy: Policy, manifest: PolicyManifest) -> str:
    if not _on_cpu(policy):
        return 'use the device cpu'
    if manifest.weights != 'fp32':
        return 'export the float32 policy again on this machine'
    other = 'torch' if policy.engine.name == 'onnx' else 'onnx'
    return f'use the engine {other}, or copy the policy again'
