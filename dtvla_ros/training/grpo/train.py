"""Group-relative policy optimisation: play, compare within groups, learn, again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.tensorboard import SummaryWriter

import dtvla_sim
from dtvla_ros.data.collect import require_tasks
from dtvla_ros.engine.batch import BatchSampler, SampledDecision
from dtvla_ros.errors import UserError
from dtvla_ros.evaluation.seeds import evaluation_seed
from dtvla_ros.evaluation.statistics import Rate
from dtvla_ros.policy.checkpoint import save_weights
from dtvla_ros.policy.observation import Observation
from dtvla_ros.policy.transform import write_transform
from dtvla_ros.rollout.env_pool import EnvPool, open_pool
from dtvla_ros.rollout.env_worker import EpisodeJob
from dtvla_ros.rollout.setup import SceneSetup
from dtvla_ros.training import run_state
from dtvla_ros.training.grpo import report
from dtvla_ros.training.grpo.branching import BranchJob
from dtvla_ros.training.grpo.config import GrpoConfig
from dtvla_ros.training.grpo.groups import Groups, Rewards, journal_path, training_seed
from dtvla_ros.training.grpo.learner import Learner, rows_of
from dtvla_ros.training.grpo.rollout import Rollout, RolloutEngine, RolloutTimes, Sampler
from dtvla_ros.training.grpo.start import load_start
from dtvla_ros.training.grpo.trajectory import Trajectory
from dtvla_ros.training.rollout import SELECTION_SEEDS

# What a run may change when it goes on: how it is computed, not what is learnt.
MACHINE = ('environments', 'lanes', 'step_timeout', 'micro_batch', 'evaluate_every',
           'evaluate_episodes')
PROBE = 5  # looks of the episodes from which the cost of an iteration is told
DRIFT_LIMIT = 0.05  # nats, without mixed precision; rounding stays below 1e-3


@dataclass(frozen=True, slots=True)
class GrpoRun:
    """Where and how long: until ``iterations`` are done, or for ``minutes`` from now.

    ``init``: a training run or a policy. ``tasks`` empty: all of the suite. ``replan_steps``
    and ``starts`` None: the policy's and the suite's own. ``ray``: address of the cluster whose
    machines run the simulators ('auto': the one at hand; None: this machine alone).
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


class GrpoTrainer:
    """One run. ``history`` has a row for every iteration; row 0 is the policy it began with."""

    def __init__(self, config: GrpoConfig, run: GrpoRun, pool: EnvPool | None = None):
        if run.threads:
            torch.set_num_threads(run.threads)
        self.config, self.run = config, run
        self.accelerator = Accelerator(mixed_precision=config.precision)
        start = load_start(run.init, run.replan_steps)
        if start.transform.mirrored:
            raise UserError(f'{run.init}: sees mirrored pictures, which a training run does not '
                            'record; begin with a policy that sees them upright')
        self.transform, self.replan_steps = start.transform, start.replan_steps
        self.sampler = BatchSampler(
            start.model, self.transform, max_thought_tokens=start.max_thought_tokens,
            thought_temperature=config.thought_temperature,
            action_temperature=config.action_temperature)
        self.greedy = BatchSampler(
            start.model, self.transform, max_thought_tokens=start.max_thought_tokens)
        self.learner = Learner(
            start.model, self.transform, self.sampler.banned, config, self.accelerator)
        self.rewards = Rewards(config, self.transform)
        self.history: list[dict[str, Any]] = [{'iteration': 0}]
        self.tried = 0  # starts used up
        self._go_on()
        if pool is None:
            pool = open_pool(SceneSetup(run.suite, run.starts), config.environments,
                             config.step_timeout, run.ray)
        self.pool = pool
        self.engine = RolloutEngine(pool, config.lanes)
        self.tasks = run.tasks or pool.ready.tasks
        try:
            require_tasks(self.tasks, pool.ready.tasks, run.suite)
        except UserError:
            pool.close()
            raise

    @property
    def iteration(self) -> int:
        """Iterations done."""
        return self.history[-1]['iteration']

    def play(self) -> Groups:
        """Play this iteration's episodes; those that were finished before are read."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        groups = Groups(self.config, self.tasks, self.replan_steps, self.rewards, self.tried,
                        rank, world, self._finished)

        def done(trajectory: Trajectory) -> None:
            trajectory.save(journal_path(self.run.out, *trajectory.key[1:]))
            groups.take(trajectory)

        self._practise(self.sampler, groups.next, done)
        return groups

    def _practise(self, sampler: Sampler, source: Callable[[], Rollout | None],
                  done: Callable[[Trajectory], None]) -> None:
        if self.config.branching:
            self.engine.branch(sampler, source, done, self.config.group,
                               self.config.follow == 'greedy')
        else:
            self.engine.run(sampler, source, done)

    def iterate(self) -> dict[str, Any]:
        """Play, learn and return the new row of the history."""
        times = self.engine.times = RolloutTimes()
        groups = self.play()
        begun = time.perf_counter()
        self.accelerator.wait_for_everyone()
        times.others = time.perf_counter() - begun
        times.playing += times.others
        begun = time.perf_counter()
        kept = groups.kept
        rows = rows_of(kept, groups.advantages())
        update = self.learner.update(rows, len(kept), self.iteration)
        if update and self.config.precision == 'no' and update.drift > DRIFT_LIMIT:
            raise UserError(f'a sampled log-prob is {update.drift:.3f} nats off the recomputed '
                            'one: sampler and learner do not run the same policy')
        seconds = asdict(times) | {'learning': time.perf_counter() - begun}
        row = {'iteration': self.iteration + 1} | self._summary(groups, times) | {
            'seconds': {k: round(v, 2) for k, v in seconds.items() if isinstance(v, float)},
            'update': asdict(update) if update else None}
        self.tried += groups.tried * self.accelerator.num_processes
        self.history.append(row)
        if self.accelerator.is_main_process:
            report.keep_examples(self.run.out, groups.episodes, self.transform, self.iteration)
        return row

    def evaluate(self) -> Rate:
        """Return the greedy policy's success on held-out starts, of every task as many."""
        first = evaluation_seed(dtvla_sim.EVAL_SEED_START + SELECTION_SEEDS)
        jobs = [Rollout(EpisodeJob(task, first + k, self.replan_steps))
                for task in self.tasks for k in range(self.config.evaluate_episodes)]
        mine = iter(jobs[self.accelerator.process_index::self.accelerator.num_processes])
        found: list[bool] = []
        self.engine.run(self.greedy, partial(next, mine, None),
                        lambda trajectory: found.append(trajectory.success))
        return Rate(int(self.learner.summed([float(sum(found))])[0]), len(jobs))

    def evaluate_if_due(self, last: bool = False) -> None:
        """Evaluate what the recipe asks for and has not been evaluated yet."""
        row, config = self.history[-1], self.config
        due = last or row['iteration'] % config.evaluate_every == 0
        if due and config.evaluate_episodes and 'evaluation' not in row:
            row['evaluation'] = self.evaluate().to_dict()
            self.save()

    def save(self) -> None:
        """Write checkpoint and weights; the episodes that were learnt from may then go."""
        if self.accelerator.is_main_process:
            out = self.run.out
            write_transform(out, self.transform)
            save_weights(self.learner.model, out / run_state.WEIGHTS)
            run_state.save_checkpoint(
                out, self.learner.model, self.learner.reference, self.learner.optimizer,
                {'config': self.config.to_dict(), 'what': self._what(), 'tried': self.tried,
                 'step': self.learner.step, 'history': self.history})
            self._forget()
        self.accelerator.wait_for_everyone()

    def estimate(self) -> str:
        """Play and learn a little; return what an iteration may take at most."""
        config, size = self.config, self.pool.size
        job = EpisodeJob(self.tasks[0], training_seed(config.first_seed), self.replan_steps,
                         PROBE * self.replan_steps)
        jobs = iter([Rollout(BranchJob(job) if config.branching else job, (k, 0))
                     for k in range(size)])
        played: list[Trajectory] = []
        clock = _Clocked(self.sampler)
        begun = time.perf_counter()
        self._practise(clock, partial(next, jobs, None), played.append)
        reset = clock.stamps[0] - begun
        wave = (clock.stamps[-1] - clock.stamps[0]) / (PROBE - 1)
        rows = rows_of(
            played, [torch.zeros(len(t.decisions)) for t in played])[:config.micro_batch]
        begun = time.perf_counter()
        self.learner.try_out(rows)
        learning = (time.perf_counter() - begun) / len(rows)
        draws = config.group if config.branching else 1
        episodes = config.groups * config.group // draws // self.accelerator.num_processes
        looks = -(-self.pool.ready.max_steps // self.replan_steps)
        play = -(-episodes // size) * (reset + looks * wave) / 60.0
        learn = episodes * looks * draws * config.learn_share * config.epochs * learning / 60.0
        frame = sum(image.nbytes for image in rows[0].frames.values())
        what = (f'{draws} draws of each decision' if config.branching
                else f'{config.groups} starts, {config.group} each')
        return (f'an iteration: {episodes} episodes ({what}) of about {looks} decisions at most, '
                f'{play + learn:.1f} min: {play:.1f} to play, {learn:.1f} to learn'
                f'{"" if config.branching else " (more where groups are replaced)"}; '
                f'{episodes * looks * frame / 1e6:.0f} MB of pictures')

    def _summary(self, groups: Groups, times: RolloutTimes) -> dict[str, Any]:
        """Return what was played, over all processes."""
        played = groups.episodes
        decisions = [d for t in played for d in t.decisions]
        gains = [gain for t in groups.played for gain in t.gains]
        way, draws = self.learner.summed([sum(gains), len(gains)])
        n, successes, form, reward, steps, looks, words, cut, tried, kept, fresh, lost = (
            self.learner.summed([
                len(played), sum(t.success for t in played), sum(map(self.rewards.form, played)),
                float(self.rewards.of(played).sum()), sum(t.steps for t in played),
                len(decisions), sum(len(d.thought_log_probs) for d in decisions),
                sum(d.outcome != 'complete' for d in decisions), groups.tried,
                len(groups.kept) / self.config.group, times.episodes, times.lost]))
        return ({'progress': way / draws} if draws else {}) | {
            'success': Rate(round(successes), round(n)).to_dict(), 'reward': reward / n,
            'form': form / n, 'groups': {'kept': round(kept), 'tried': round(tried)},
            'steps': steps / n, 'decisions': round(looks), 'words': words / looks,
            'cut': cut / looks, 'episodes': round(fresh), 'lost': round(lost)}

    def _finished(self, number: int, member: int) -> Trajectory | None:
        path = journal_path(self.run.out, number, member)
        return Trajectory.load(path) if path.exists() else None

    def _forget(self) -> None:
        for path in journal_path(self.run.out, 0, 0).parent.glob('*'):
            if int(path.name.split('-')[0]) < self.tried:
                path.unlink()

    def _what(self) -> dict[str, Any]:
        run = self.run
        return {'suite': run.suite, 'tasks': list(run.tasks), 'starts': run.starts,
                'replan_steps': self.replan_steps}

    def _go_on(self) -> None:
        learner = self.learner
        state = run_state.load_checkpoint(
            self.run.out, learner.model, learner.reference, learner.optimizer)
        if state is None:
            return
        mine = {k: v for k, v in self.config.to_dict().items() if k not in MACHINE} | self._what()
        theirs = GrpoConfig.from_dict(state['config']).to_dict() | state['what']
        changed = sorted(k for k, v in mine.items() if theirs[k] != v)
        if changed:
            raise UserError(f'{self.run.out}: begun with another {", ".join(changed)}; use the '
                            'same or a new --out')
        learner.step, self.tried = state['step'], state['tried']
        self.history = state['history']
        self._forget()


def train_grpo(config: GrpoConfig, run: GrpoRun, estimate: bool = False,
               pool: EnvPool | None = None) -> list[dict[str, Any]]:
    """Train until the iterations or the minutes are over; return the history.

    The run folder holds the weights with config, tokenizer and statistics (what ``dtvla export``
    reads), a checkpoint, the episodes of the iteration at hand, TensorBoard logs and
    ``report.html``. It may be stopped or killed at any time: repeating the command goes on, and
    an episode that was finished is not played again. ``estimate``: only say what an iteration
    takes. ``pool`` None: simulators of the run's suite.
    """
    trainer = GrpoTrainer(config, run, pool)
    begun = time.perf_counter()

    def over() -> bool:
        if run.iterations is not None:
            return trainer.iteration >= run.iterations
        assert run.minutes is not None
        return time.perf_counter() - begun > 60.0 * run.minutes

    with closing(trainer.pool):
        last = over()
        if trainer.accelerator.is_main_process and (estimate or not last):
            print(trainer.estimate(), flush=True)
        if estimate:
            return trainer.history
        trainer.evaluate_if_due(last)
        with _Shown(trainer) as shown:
            while not last:
                trainer.iterate()
                trainer.save()
                last = over()
                trainer.evaluate_if_due(last)
                shown.row()
    trainer.accelerator.end_training()  # gloo may spin for ever in a process that just ends
    return trainer.history


class _Clocked:
    """A sampler that notes when it was asked."""

    def __init__(self, sampler: Sampler):
        self._sampler = sampler
        self.stamps: list[float] = []

    def infer(self, observations: Sequence[Observation],
               seeds: Sequence[int | None] | None = None,
               copies: int = 1) -> list[SampledDecision]:
        self.stamps.append(time.perf_counter())
        return self._sampler.infer(observations, seeds, copies)


class _Shown:
    """What a run shows of itself: lines, TensorBoard, the report."""

    def __init__(self, trainer: GrpoTrainer):
        self._trainer = trainer
        self._writer = (
            SummaryWriter(trainer.run.out / 'tensorboard', purge_step=trainer.iteration + 1)
            if trainer.accelerator.is_main_process else None)

    def __enter__(self) -> _Shown:
        return self

    def row(self) -> None:
        """Show the last iteration."""
        trainer = self._trainer
        if self._writer is not None:
            row = trainer.history[-1]
            print(report.line(row), flush=True)
            for name, value in report.scalars(row):
                self._writer.add_scalar(name, value, row['iteration'])
            report.write_report(trainer.run.out, trainer.history, trainer.config)

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()
            print(report.where_time_goes(self._trainer.history), flush=True)
