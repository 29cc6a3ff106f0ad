"""Group-relative policy optimisation: roll out, compare within groups, update, repeat."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.tensorboard import SummaryWriter

import dtvla_sim
from dtvla_ros.actions.contract import require_offsets
from dtvla_ros.engine.batch import BatchSampler
from dtvla_ros.errors import UserError
from dtvla_ros.evaluation.results import Rate, evaluation_seed
from dtvla_ros.files import require_folder, writing
from dtvla_ros.interrupt import resumable
from dtvla_ros.policy.checkpoint import save_weights
from dtvla_ros.policy.manifest import PROOF
from dtvla_ros.policy.transform import write_transform
from dtvla_ros.rollout import batched
from dtvla_ros.rollout.env import SceneSetup, require_contract, require_tasks
from dtvla_ros.rollout.episode import EpisodeJob
from dtvla_ros.rollout.workers import Workers, open_envs
from dtvla_ros.training import checkpoint
from dtvla_ros.training.config import SELECTION_SEEDS
from dtvla_ros.training.export import read_source
from dtvla_ros.training.grpo import report
from dtvla_ros.training.grpo.advantage import Groups, Rewards
from dtvla_ros.training.grpo.config import GrpoConfig
from dtvla_ros.training.grpo.learner import Learner, summed, transitions
from dtvla_ros.training.grpo.rollout import BranchJob, Trajectory, run_rollouts
from dtvla_ros.training.observations import own_observations

# What a run may change when it goes on: how it is computed, not what is learnt.
MACHINE = ('num_envs', 'num_env_groups', 'step_timeout', 'micro_batch', 'evaluate_every',
           'evaluate_episodes')
MISMATCH_LIMIT = 0.05  # nats, without mixed precision; rounding stays below 1e-3
PROBED = 5  # decisions of an episode from which the cost of an iteration is estimated


@dataclass(frozen=True, slots=True)
class GrpoRun:
    """Where and how long: until ``iterations`` are done, or for ``minutes`` from now.

    ``init``: a training run or a policy. ``tasks`` empty: all of the suite. ``replan_steps``,
    ``starts`` None: the policy's and the suite's own. ``ray``: address of the cluster that runs
    the simulators ('auto': the one at hand; None: this machine alone).
    """

    init: Path
    out: Path
    iterations: int | None = None
    minutes: float | None = None
    suite: str = 'tabletop'
    tasks: tuple[str, ...] = ()
    starts: str | None = None
    replan_steps: int | None = None
    threads: int | None = None
    ray: str | None = None

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.iterations is None):
            raise UserError('give either --minutes or --iterations')


def train_grpo(config: GrpoConfig, run: GrpoRun, estimate: bool = False,
               pool: Workers | None = None) -> list[dict[str, Any]]:
    """Train until the iterations or the minutes are over; return the history.

    The run folder holds what ``dtvla export`` reads, a checkpoint, the episodes of the iteration
    at hand, TensorBoard logs and ``report.html``. It may be killed at any time: repeating the
    command goes on, and no finished episode is played again. ``estimate``: only say what an
    iteration takes. ``pool`` None: simulators of the run's suite.
    """
    trainer = GrpoTrainer(config, run, pool)
    with resumable(trainer.kept):
        return _practise(trainer, estimate)


def _practise(trainer: GrpoTrainer, estimate: bool) -> list[dict[str, Any]]:
    config, run, begun = trainer.config, trainer.run, time.perf_counter()

    def over() -> bool:
        if run.minutes is not None:
            return time.perf_counter() - begun > 60.0 * run.minutes
        return trainer.iteration >= (run.iterations or 0)

    main = trainer.accelerator.is_main_process
    with closing(trainer.pool):
        require_tasks(trainer.tasks, trainer.pool.info.tasks, run.suite)
        require_contract(trainer.transform, str(run.init), trainer.pool.info)
        last = over()
        if main and (estimate or not last):
            print(trainer.estimate(), flush=True)
        if estimate:
            return trainer.history
        trainer.evaluate_if_due(last)
        writer = SummaryWriter(
            run.out / 'tensorboard', purge_step=trainer.iteration + 1) if main else None
        while not last:
            trainer.iterate()
            trainer.save()
            last = over()
            trainer.evaluate_if_due(last)
            if writer is not None:
                print(report.line(trainer.history[-1]), flush=True)
                for name, value in report.scalars(trainer.history[-1]).items():
                    writer.add_scalar(name, value, trainer.iteration)
                report.write_report(run.out, trainer.history, config)
        if writer is not None:
            writer.close()
            print(report.where_time_goes(trainer.history), flush=True)
    trainer.accelerator.end_training()  # gloo may spin for ever in a process that just ends
    return trainer.history


class GrpoTrainer:
    """One run. ``history`` has a row for every iteration; row 0 is the initial policy."""

    def __init__(self, config: GrpoConfig, run: GrpoRun, pool: Workers | None = None):
        if run.threads:
            torch.set_num_threads(run.threads)
        self.config, self.run = config, run
        model, self.transform, manifest = read_source(run.init)
        require_offsets(self.transform.contract, str(run.init), 'dtvla train grpo')
        self.observations = own_observations(run.init, self.transform)
        self.instructions, self.says_done = manifest.tasks, manifest.says_done
        self.names = manifest.names
        if self.transform.mirrored:
            raise UserError(f'{run.init}: sees mirrored images, which a training run does not '
                            'record; begin with a policy that sees them upright')
        self.accelerator = Accelerator(mixed_precision=config.precision)
        if self.accelerator.is_main_process:
            require_folder(run.out)
        self.replan_steps = run.replan_steps or manifest.action.replan_steps
        # What of the run, besides its configuration, must stay.
        self._what = {'suite': run.suite, 'tasks': list(run.tasks), 'starts': run.starts,
                      'replan_steps': self.replan_steps}
        sampler = partial(BatchSampler, model, self.transform,
                          max_thought_tokens=manifest.max_thought_tokens)
        self.sampler = sampler(thought_temperature=config.thought_temperature,
                               action_temperature=config.action_temperature)
        self.greedy = sampler()
        self.learner = Learner(
            model, self.transform, self.sampler.banned, config, self.accelerator)
        self.rewards = Rewards(config, self.transform)
        self.history: list[dict[str, Any]] = [{'iteration': 0}]
        self.tried = 0  # starts used up
        self._resume()
        self.pool = pool or open_envs(SceneSetup(run.suite, run.starts), config.num_envs,
                                      config.step_timeout, run.ray)
        self.engine = batched.BatchedRollouts(self.pool, config.num_env_groups)
        self.tasks = run.tasks or self.pool.info.tasks

    @property
    def iteration(self) -> int:
        return self.history[-1]['iteration']

    def iterate(self) -> dict[str, Any]:
        """Roll out, update and return the new row of the history."""
        times = self.engine.times = batched.RolloutTimes()
        groups = self.roll_out()
        begun = time.perf_counter()
        self.accelerator.wait_for_everyone()
        times.others = time.perf_counter() - begun
        times.playing += times.others
        begun = time.perf_counter()
        rows = transitions(groups.kept, groups.advantages())
        update = self.learner.update(rows, len(groups.kept), self.iteration)
        mismatch = update['log_prob_mismatch'] if update else 0.0
        if self.config.precision == 'no' and mismatch > MISMATCH_LIMIT:
            raise UserError(f'a sampled log-prob is {mismatch:.3f} nats off the recomputed one: '
                            'sampler and learner do not run the same policy')
        seconds = asdict(times) | {'learning': time.perf_counter() - begun}
        row = {'iteration': self.iteration + 1} | self._summary(groups, times) | {
            'seconds': {k: round(v, 2) for k, v in seconds.items() if isinstance(v, float)},
            'update': update}
        self.tried += groups.tried * self.accelerator.num_processes
        self.history.append(row)
        if self.accelerator.is_main_process:
            report.keep_examples(self.run.out, groups.episodes, self.transform, self.iteration)
        return row

    def roll_out(self) -> Groups:
        """Play this iteration's episodes; those that were finished before are read."""
        def finished(number: int, sample: int) -> Trajectory | None:
            path = self._episode(number, sample)
            return Trajectory.load(path) if path.exists() else None

        groups = Groups(
            self.config, self.tasks, self.replan_steps, self.rewards, self.tried,
            self.accelerator.process_index, self.accelerator.num_processes, finished)

        def done(trajectory: Trajectory) -> None:
            trajectory.save(self._episode(*trajectory.key[1:]))
            groups.take(trajectory)

        self._run_rollouts(self.sampler, groups.next, done)
        return groups

    def _run_rollouts(self, sampler: batched.Sampler, source: Callable[[], batched.Rollout | None],
                      done: Callable[[Trajectory], None]) -> None:
        config = self.config
        samples = [*range(config.num_generations if config.per_step else 1)]
        greedy = [None] if config.per_step and config.continue_from == 'greedy' else []
        run_rollouts(self.engine, sampler, source, done, [*greedy, *samples])

    def evaluate_if_due(self, last: bool = False) -> None:
        """Let the greedy policy play held-out starts, of every task as many, if it has not yet."""
        row, config, world = self.history[-1], self.config, self.accelerator.num_processes
        due = last or self.iteration % config.evaluate_every == 0
        if not due or not config.evaluate_episodes or 'evaluation' in row:
            return
        first = evaluation_seed(dtvla_sim.EVAL_SEED_START + SELECTION_SEEDS)
        jobs = [EpisodeJob(task, first + k, self.replan_steps)
                for task in self.tasks for k in range(config.evaluate_episodes)]
        solved = batched.successes(
            self.engine, self.greedy, jobs[self.accelerator.process_index::world])
        row['evaluation'] = Rate(
            round(summed(self.accelerator, [sum(solved)])[0]), len(jobs)).to_dict()
        self.save()

    def _summary(self, groups: Groups, times: batched.RolloutTimes) -> dict[str, Any]:
        """Return what was played, over all processes."""
        played = groups.episodes
        decisions = [d for t in played for d in t.decisions]
        progress = [x for t in groups.played for x in t.progress]
        sums: dict[str, float] = {
            'samples': len(progress), 'progress': sum(progress), 'episodes': len(played),
            'successes': sum(t.success for t in played), 'steps': sum(t.steps for t in played),
            'reward': float(self.rewards.of(played).sum()),
            'format': sum(map(self.rewards.format, played)), 'decisions': len(decisions),
            'thought_tokens': sum(len(d.thought_log_probs) for d in decisions),
            'truncated': sum(d.outcome != 'complete' for d in decisions), 'tried': groups.tried,
            'kept': len(groups.kept) / self.config.num_generations, 'fresh': times.episodes,
            'lost': times.lost}
        s = dict(zip(sums, summed(self.accelerator, [*sums.values()]), strict=True))
        return ({'progress': s['progress'] / s['samples']} if s['samples'] else {}) | {
            'success': Rate(round(s['successes']), round(s['episodes'])).to_dict(),
            'groups': {'kept': round(s['kept']), 'tried': round(s['tried'])},
            **{name: s[name] / s['episodes'] for name in ('reward', 'format', 'steps')},
            **{name: s[name] / s['decisions'] for name in ('thought_tokens', 'truncated')},
            'decisions': round(s['decisions']), 'episodes': round(s['fresh']),
            'lost': round(s['lost'])}

    def estimate(self) -> str:
        """Play and learn a little; return what an iteration may take at most."""
        config, size = self.config, self.pool.size
        job = EpisodeJob(self.tasks[0], config.first_seed, self.replan_steps,
                         PROBED * self.replan_steps)
        jobs = iter([batched.Rollout(BranchJob(job) if config.per_step else job, (k, 0))
                     for k in range(size)])
        played: list[Trajectory] = []
        stamps: list[float] = []

        def infer(*arguments: Any) -> Any:
            stamps.append(time.perf_counter())
            return self.sampler.infer(*arguments)

        begun = time.perf_counter()
        self._run_rollouts(SimpleNamespace(infer=infer), partial(next, jobs, None), played.append)
        reset = stamps[0] - begun
        decision = (stamps[-1] - stamps[0]) / (PROBED - 1)
        rows = transitions(
            played, [torch.zeros(len(t.decisions)) for t in played])[:config.micro_batch]
        begun = time.perf_counter()
        self.learner.try_out(rows)
        learning = (time.perf_counter() - begun) / len(rows)
        samples, each = ((config.num_generations, 1) if config.per_step
                         else (1, config.num_generations))
        episodes = config.num_starts * each // self.accelerator.num_processes
        decisions = -(-self.pool.info.max_steps // self.replan_steps)
        play = -(-episodes // size) * (reset + decisions * decision) / 60.0
        learn = (episodes * decisions * samples * config.sample_fraction
                 * config.num_iterations * learning / 60.0)
        frame = sum(image.nbytes for image in rows[0].frames.values())
        what = (f'{samples} samples of each decision' if config.per_step
                else f'{config.num_starts} starts, {each} each')
        return (f'an iteration: {episodes} episodes ({what}) of about {decisions} decisions at '
                f'most, {play + learn:.1f} min: {play:.1f} to play, {learn:.1f} to learn'
                f'{"" if config.per_step else " (more where groups are replaced)"}; '
                f'{episodes * decisions * frame / 1e6:.0f} MB of images')

    def save(self) -> None:
        """Write checkpoint and weights; the episodes that were learnt from may then go."""
        if self.accelerator.is_main_process:
            out = self.run.out
            with writing(out):
                write_transform(out, self.transform)
                checkpoint.write_tasks(out, self.instructions, self.names, self.says_done)
                if self.observations is not None:
                    self.observations.write(out / PROOF)
                save_weights(self.learner.model, out / checkpoint.WEIGHTS)
            checkpoint.save_checkpoint(
                out, self.learner.model, self.learner.reference, self.learner.optimizer,
                {'config': asdict(self.config), 'what': self._what, 'tried': self.tried,
                 'step': self.learner.step, 'history': self.history})
            self._forget()
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        """Go on from the run folder's checkpoint, if there is one; refuse other options."""
        learner = self.learner
        state = checkpoint.load_checkpoint(
            self.run.out, learner.model, learner.reference, learner.optimizer)
        if state is None:
            return
        mine = {k: v for k, v in asdict(self.config).items() if k not in MACHINE} | self._what
        theirs = asdict(GrpoConfig.from_dict(state['config'])) | state['what']
        changed = sorted(k for k, v in mine.items() if theirs[k] != v)
        if changed:
            raise UserError(f'{self.run.out}: begun with another {", ".join(changed)}; use the '
                            'same or a new --out')
        learner.step, self.tried = state['step'], state['tried']
        self.history = state['history']
        self._forget()

    def kept(self) -> str:
        """Say what an interrupted run has on disk."""
        played = len([*self._episode(0, 0).parent.glob('*.safetensors')])
        return (f'{self.run.out}: {self.iteration} iterations and {played} episodes of the next '
                'are kept; repeat the command to go on')

    def _episode(self, number: int, sample: int) -> Path:
        return self.run.out / 'rollouts' / f'{number:07d}-{sample:03d}.safetensors'

    def _forget(self) -> None:
        """Remove the episodes that were learnt from, and what a kill left half written."""
        for path in self._episode(0, 0).parent.glob('*'):
            if path.name.startswith('.') or int(path.name.split('-')[0]) < self.tried:
                path.unlink()
