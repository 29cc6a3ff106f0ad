"""DAgger: the policy drives, the scripted expert labels what it would do and think instead.

Ross, Gordon and Bagnell, "A reduction of imitation learning and structured prediction to no-regret
online learning", 2011. After a while the expert takes over, so that the end is seen. Or the expert
stands for a person at the operator's page: it only watches, takes over where the policy goes
astray, and hands back; Mandlekar et al., "Human-in-the-Loop Imitation Learning using Remote
Teleoperation", 2020.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dtvla_ros.actions import osc
from dtvla_ros.actions.contract import require_offsets
from dtvla_ros.data import collect, layout, writer
from dtvla_ros.data.layout import Episode
from dtvla_ros.errors import UserError
from dtvla_ros.interrupt import finishing
from dtvla_ros.rollout.env import Env, SceneSetup, require_contract, require_tasks
from dtvla_ros.rollout.episode import Infer, execute, observation_from_sim
from dtvla_ros.thought import FINISHED, Thought

KIND, TAKEOVER = 'dagger', 'takeover'
STILL = 0.1  # length of an action in which the expert hardly moves
ALONG = 0.2  # share of the expert's own motion below which the policy is not on its way


@dataclass(frozen=True, slots=True)
class DaggerOptions:
    """One round. ``seed``: which block of start states; another one for every round.

    The policy drives for a share of the task's step limit drawn from ``driven`` (least, most).
    ``camera_every`` as of ``CollectOptions``; ``expert_steps``: control steps the expert has once
    it takes over. ``after_success``: steps that an episode goes on then, so that what the policy
    does with a finished task is labelled, too. ``antialiasing`` as of ``SceneSetup``.

    ``takeover`` above 0: nothing is relabelled and ``driven`` does not count. The expert takes
    over once the policy has gone astray for so many control steps in a row, as `Overseer` sees it.
    """

    suite: str = 'tabletop'
    tasks: tuple[str, ...] = ()
    starts: str | None = None
    episodes: int = 240
    seed: int = 7
    camera_every: int = 4
    driven: tuple[float, float] = (0.2, 1.0)
    expert_steps: int = 300
    after_success: int = 20
    antialiasing: bool = True
    takeover: int = 0

    def __post_init__(self) -> None:
        collect.require_plan(self.seed, self.camera_every, self.episodes)
        low, high = self.driven
        if not 0.0 <= low <= high:
            raise UserError(f'the policy drives for {low} to {high} of the steps; give a range')


class Overseer:
    """Watches a policy as somebody who knows the task, and says when to take over and hand back.

    It takes over after ``steps`` control steps in a row in which the policy went less than a
    fifth as far as the expert would have along the expert's way, or wanted the gripper otherwise.
    Of success it knows nothing: where the expert waits, the policy is let alone. It hands back
    once it has driven as long and the phase in which it took over is past. ``driving``: whether it
    does.
    """

    def __init__(self, steps: int) -> None:
        self._steps, self._count, self._phase = steps, 0, ''
        self.driving = False

    def watch(self, act: Any, executed: NDArray[np.floating]) -> None:
        """Take what the expert would have done in a control step, and the action [7] executed."""
        if self.driving:
            self._count += 1
            if self._count >= self._steps and act.phase != self._phase:
                self.driving, self._count = False, 0
            return
        self._count = self._count + 1 if astray(act, executed) else 0
        if self._count >= self._steps:
            self.driving, self._count, self._phase = True, 0, act.phase


def astray(act: Any, executed: NDArray[np.floating]) -> bool:
    """Return whether an action [7] is not what an expert's step is after."""
    if act.phase == FINISHED:  # an expert that sees nothing left to do
        return False
    wanted, went = np.asarray(act.action, np.float64), np.asarray(executed, np.float64)
    way = wanted[:3]
    return bool(wanted[6] * went[6] < 0.0 or (
        np.linalg.norm(way) > STILL and went[:3] @ way < ALONG * (way @ way)))


@dataclass(frozen=True, slots=True)
class TakeoverJob:
    """One episode in which the policy drives and the expert takes over where it goes astray."""

    plan: collect.EpisodePlan
    options: DaggerOptions
    chunk: int
    replan_steps: int

    def run(self, env: Env, infer: Infer) -> tuple[Episode | None, bool]:
        """Run it until some steps after success, or all steps are used up.

        A frame has the thought and the action of who drove. Returns the episode, None if it was
        not solved, and whether nobody took over.
        """
        from dtvla_sim.experts import make_expert

        plan, options = self.plan, self.options
        obs, info = env.reset(seed=plan.seed, options={'task': plan.task})
        expert, frames, overseer = make_expert(env), collect.Frames(), Overseer(options.takeover)
        actions: list[NDArray[np.float32]] = []
        driven: list[bool] = []  # by the expert, of each control step
        pending: list[NDArray[np.float32]] = []
        thought, gripper, solved = '', osc.GRIPPER_OPEN, 0  # control steps until success
        while len(actions) < (solved + options.after_success if solved else
                              env.max_steps + options.expert_steps):
            step = len(actions)
            act = expert.act(driving=overseer.driving)
            if not (overseer.driving or pending):
                decision = infer(observation_from_sim(obs, info, env, step))
                pending = list(decision.chunk[:self.replan_steps])
                thought = decision.reasoning
            action = np.asarray(act.action if overseer.driving else pending.pop(0), np.float32)
            if step % options.camera_every == 0:
                frames.add(env, obs, act if overseer.driving else told(act, thought))
            driven.append(overseer.driving)
            executed = execute(env, action[None], gripper)
            obs, gripper = executed.obs, executed.gripper
            actions.append(np.asarray(executed.commands[0], np.float32))
            solved = solved or executed.success * len(actions)
            overseer.watch(act, actions[-1])
            if overseer.driving:
                pending = []
        if not solved:
            return None, False
        starts = np.arange(0, len(actions), options.camera_every)
        breaks = (np.flatnonzero(np.diff(driven)) + 1).tolist()
        episode = frames.episode(env, plan, actions, starts, self.chunk, breaks, True)
        return replace(episode, columns={
            **episode.columns, layout.INTERVENTION: np.array(driven)[starts]}), not any(driven)


def told(act: Any, thought: str) -> Any:
    """Return an expert's step with the thought that a policy had, if that is one."""
    parsed = Thought.parse(thought)
    return act if parsed is None else replace(act, thought=thought, phase=parsed.phase)


@dataclass(frozen=True, slots=True)
class RelabelJob:
    """One episode to drive and relabel."""

    plan: collect.EpisodePlan
    options: DaggerOptions
    chunk: int
    replan_steps: int

    def run(self, env: Env, infer: Infer) -> tuple[Episode | None, bool]:
        """Run it until some steps after it is solved, or the expert's steps are used up.

        Returns the episode with the expert's labels, None if not even the expert solved it, and
        whether the policy did before the expert took over.
        """
        from dtvla_sim.experts import make_expert

        plan, options = self.plan, self.options
        obs, info = env.reset(seed=plan.seed, options={'task': plan.task})
        share = np.random.default_rng([options.seed, plan.index]).uniform(*options.driven)
        driven = round(share * env.max_steps)
        expert, frames = make_expert(env), collect.Frames()
        labels: list[NDArray[np.float32]] = []
        pending: list[NDArray[np.float32]] = []
        gripper, solved = osc.GRIPPER_OPEN, 0  # control steps until success
        while len(labels) < (solved + options.after_success if solved else
                             driven + options.expert_steps):
            step = len(labels)
            act = expert.act(driving=step >= driven)
            if step % options.camera_every == 0:
                frames.add(env, obs, act)
            labels.append(np.asarray(act.action, np.float32))
            if step >= driven:
                obs, _, success, _, _ = env.step(act.action)
            else:
                if not pending:
                    seen = observation_from_sim(obs, info, env, step)
                    pending = list(infer(seen).chunk[:self.replan_steps])
                executed = execute(env, pending.pop(0)[None], gripper)
                obs, gripper, success = executed.obs, executed.gripper, executed.success
            solved = solved or success * len(labels)
        if not solved:
            return None, False
        starts = np.arange(0, len(labels), options.camera_every)
        breaks = [driven] if driven < len(labels) else []
        episode = frames.episode(env, plan, labels, starts, self.chunk, breaks, True)
        # The expert's labels at states the policy went to by itself are no plan: only as much of
        # one is kept as is executed before the next decision.
        padding = np.asarray(episode.columns[layout.ACTION_IS_PAD])
        padding[starts < driven, self.replan_steps:] = True
        return episode, solved <= driven


def shard_plans(options: DaggerOptions, tasks: Sequence[str], number: int,
                one_scene: bool) -> list[collect.EpisodePlan]:
    """Return the episodes of a shard."""
    size = collect.EPISODES_PER_SHARD
    return [collect.EpisodePlan(index, collect.task_in_turn(tasks, index, one_scene),
                                options.seed * collect.SEEDS_PER_BASE + index,
                                TAKEOVER if options.takeover else KIND)
            for index in range(options.episodes)[number * size:(number + 1) * size]]


def relabel(init: Path, out: Path, options: DaggerOptions, workers: int = 2,
            replan_steps: int | None = None, ray: str | None = None,
            threads: int | None = None) -> dict[str, Any]:
    """Let the policy of a run or folder drive ``options.episodes`` episodes, write a dataset.

    ``threads``: of the policy, all cores if None; more than there are idle cores hold it up.

    Returns the dataset's info. Finished shards are kept: the same command goes on. On Ctrl-C those
    that have begun are finished; KeyboardInterrupt says how many episodes there are. Raises
    ``UserError`` for unknown tasks, or if ``out`` was made with other options.
    """
    import torch

    from dtvla_ros.engine.batch import BatchSampler
    from dtvla_ros.rollout.batched import BatchedRollouts, Rollout
    from dtvla_ros.rollout.batched import Episode as Driven
    from dtvla_ros.rollout.workers import open_envs
    from dtvla_ros.training.export import read_source

    if threads:
        torch.set_num_threads(threads)
    model, transform, manifest = read_source(init)
    require_offsets(transform.contract, str(init), 'dtvla train dagger')
    writer.require_same_options(out / 'dagger.json', asdict(options) | {'init': str(init)},
                                asdict(DaggerOptions(after_success=0)))
    scene = SceneSetup(options.suite, options.starts, antialiasing=options.antialiasing,
                       image_size=transform.config.vision.image_size)
    with closing(open_envs(scene, workers, ray=ray)) as envs:
        tasks = options.tasks or envs.info.tasks
        require_tasks(tasks, envs.info.tasks, options.suite)
        require_contract(transform, str(init), envs.info)
        shards = {number: shard_plans(options, tasks, number, envs.info.one_scene)
                  for number in writer.missing_shards(out, options.episodes,
                                                      collect.EPISODES_PER_SHARD)}
        size = collect.EPISODES_PER_SHARD
        job = TakeoverJob if options.takeover else RelabelJob
        rest = deque(Rollout(job(plan, options, transform.config.chunk_steps,
                                 replan_steps or manifest.action.replan_steps))
                     for plans in shards.values() for plan in plans)
        results: dict[int, Episode | None] = {}
        solved: list[tuple[bool, bool]] = []  # by the policy alone, and in the end
        with finishing(f'the shards begun, {size} episodes each') as stop, tqdm(
                total=len(rest), unit='ep', disable=not rest) as bar:
            def source() -> Rollout | None:
                begins = rest and rest[0].job.plan.index % size == 0
                return rest.popleft() if rest and not (stop and begins) else None

            def ended(driven: Driven, result: tuple[Episode | None, bool]) -> None:
                index = driven.rollout.job.plan.index
                results[index] = result[0]
                solved.append((result[1], result[0] is not None))
                alone, kept = np.mean(solved, 0)
                bar.update(1)
                bar.set_postfix(alone=f'{alone:.0%}', kept=f'{kept:.0%}')
                number = index // size
                if all(plan.index in results for plan in shards[number]):
                    episodes = [results.pop(plan.index) for plan in shards[number]]
                    writer.write_shard(
                        out, number, [e for e in episodes if e is not None],
                        20 // options.camera_every, tried=len(episodes))

            sampler = BatchSampler(model, transform,
                                   max_thought_tokens=manifest.max_thought_tokens)
            BatchedRollouts(envs).run(sampler, source, ended)
    if rest:
        done = f'{options.episodes - len(rest)} of {options.episodes} episodes'
        raise KeyboardInterrupt(f'{out}: {done} are kept; repeat the command to go on')
    return writer.merge_shards(out)
