"""Where a policy says that things are, from images that are disturbed: what looks cost it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

import numpy as np
import typer
from numpy.typing import NDArray

import dtvla_sim
from benchmarks.common import progress, show
from dtvla_ros.cli import main
from dtvla_ros.cli.arguments import NANO, Json, group
from dtvla_ros.engine.load import load_policy
from dtvla_ros.errors import UserError
from dtvla_ros.evaluation.results import Rate, evaluation_seed
from dtvla_ros.files import find_shared
from dtvla_ros.policy.transform import Observation
from dtvla_ros.rollout.env import require_contract
from dtvla_ros.rollout.episode import observation_from_sim
from dtvla_ros.thought import Thought
from dtvla_sim.env import ArmEnv
from dtvla_sim.experts import make_expert
from dtvla_sim.perturbation import STRENGTHS, PerturbedEnv, parse

LOOKS = ('camera', 'light', 'texture', 'noise', 'layout')
CELLS = ('', *(f'{family}:{strength}' for family in LOOKS for strength in STRENGTHS))
NEAR = 2.0  # [cm]
app = group()


@dataclass(frozen=True, slots=True)
class Scene:
    """A start state: what a policy sees, the object to name, where objects are [2] cm, by name.

    Names have blanks, as in a thought; places are of the base frame.
    """

    observation: Observation
    object: str
    places: Mapping[str, NDArray[np.float64]]


class Said(NamedTuple):
    """Whether a thought named the right object, and how far off the place it said is [cm].

    The place is compared with where the named object is; ``inf`` without a place or such object.
    """

    named: bool
    off: float


def scenes(env: PerturbedEnv, cells: Sequence[str], episodes: int) -> Iterator[tuple[str, Scene]]:
    """Yield every cell with each of its start states, the same ones in every cell."""
    expert = make_expert(cast(ArmEnv, env))
    # By task: another task of LIBERO builds another scene.
    starts = sorted((i % len(env.tasks), evaluation_seed(None) + i) for i in range(episodes))
    for number, seed in starts:
        for cell in cells:
            env.use([cell] if cell else [])
            obs, info = env.reset(seed=seed, options={'task': env.tasks[number]})
            expert.reset()
            wanted = Thought.parse(expert.act().thought.replace('_', ' '))
            assert wanted is not None, "an expert's thought is of the grammar"
            places = {name.replace('_', ' '): 100.0 * (env.place(name) - env.base_position)[:2]
                      for name in env.object_names}
            yield cell, Scene(
                observation_from_sim(obs, info, cast(Any, env)), wanted.object, places)


def judge(thought: str, scene: Scene) -> Said:
    """Return how right a thought's words are about a scene."""
    said = Thought.parse(thought)
    if said is None or said.object not in scene.places:
        return Said(False, math.inf)
    off = float(np.linalg.norm(np.array([said.x, said.y]) - scene.places[said.object]))
    return Said(said.object == scene.object, off if math.isfinite(off) else math.inf)


def measure(thinkers: Mapping[str, Callable[[Observation], str]], env: PerturbedEnv,
            cells: Sequence[str], episodes: int) -> dict[tuple[str, str], list[Said]]:
    """Return what each of ``thinkers`` said of every scene, by cell and thinker."""
    said = defaultdict(list)
    for cell, scene in progress(scenes(env, cells, episodes), desc='scenes',
                                total=episodes * len(cells)):
        for name, think in thinkers.items():
            said[cell, name].append(judge(think(scene.observation), scene))
    return said


def thinker(folder: Path, env: PerturbedEnv) -> Callable[[Observation], str]:
    """Return what gives a policy's thought, decoded from nothing, in one thread.

    Raises UserError for a policy of another arm, or other cameras, than the environment's.
    """
    policy, _ = load_policy(find_shared(folder), threads=1)
    require_contract(policy.transform, str(folder), env)

    def think(observation: Observation) -> str:
        policy.reset()
        return policy.infer(observation).reasoning

    return think


def summary(cell: str, policy: str, said: Sequence[Said]) -> dict[str, Any]:
    """Return a row of the result; ``off_cm`` by scene, None where no place was said."""
    off = [s.off if math.isfinite(s.off) else None for s in said]
    median = float(np.median([s.off for s in said]))
    return {'images': cell or 'undisturbed', 'policy': policy,
            'near': Rate.of(s.off <= NEAR for s in said),
            'median_cm': round(median, 3) if math.isfinite(median) else None,
            'named': Rate.of(s.named for s in said), 'off_cm': off}


def share(rate: Rate) -> str:
    """Return a rate with its interval, without the counts."""
    low, high = rate.interval
    return f'{rate.value:.0%} ({100 * low:.0f}-{high:.0%})'


@app.command()
def places(
    policy: Annotated[list[Path] | None, typer.Option('--policy', help='Folder of a policy; '
        f'repeat for several, which see the same images. [default: {NANO}]')] = None,
    episodes: Annotated[int, typer.Option(min=1, help='Start states of each cell.')] = 30,
    suite: Annotated[str, typer.Option(help='Scenes and tasks.')] = 'tabletop',
    perturb: Annotated[list[str] | None, typer.Option('--perturb', metavar='FAMILY:STRENGTH',
        help='Only this cell; repeatable. [default: undisturbed, and every strength of '
             f'{", ".join(LOOKS)}]')] = None,
    json_file: Json = None,
) -> None:
    """Measure what other looks cost a policy, without rollouts.

    Every policy thinks once at each start state, none of which a training used. Its thought names
    an object and a place; the place is compared with where that object is, the object with the
    one the expert names. The start states are the same in every cell. 95 % intervals are
    Wilson's.

    **Example**

    `python -m benchmarks.places --policy models/nano --policy runs/mine/policy --episodes 30`
    """
    cells = tuple(perturb or CELLS)
    if 'language' in (parse(cell)[0] for cell in cells if cell):
        raise UserError(f'--perturb language changes no image; use {", ".join(LOOKS)} or robot')
    with closing(PerturbedEnv(dtvla_sim.make(suite))) as env:
        thinkers = {str(folder): thinker(folder, env) for folder in policy or [NANO]}
        said = measure(thinkers, env, cells, episodes)
    rows = [summary(cell, name, said[cell, name]) for cell in cells for name in thinkers]
    if disturbed := [cell for cell in cells if cell]:
        rows += [summary('all disturbed', name, [
            one for cell in disturbed for one in said[cell, name]]) for name in thinkers]
    show(('images', 'policy', f'within {NEAR:g} cm', 'median [cm]', 'right object'), (
        (row['images'], row['policy'], share(row['near']), '-' if row['median_cm'] is None
         else f'{row["median_cm"]:.1f}', share(row['named'])) for row in rows),
        f'{suite}, {episodes} start states from seed {evaluation_seed(None)} on, the same in '
        'every cell; first thought, one thread', json_file, {
            'suite': suite, 'episodes': episodes, 'near_cm': NEAR, 'rows': [
                row | {key: row[key].to_dict() for key in ('near', 'named')} for row in rows]})


if __name__ == '__main__':
    main(app)
