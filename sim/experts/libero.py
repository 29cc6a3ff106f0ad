"""A scripted expert for LIBERO's tasks: one goal after the other, each by a skill, with thoughts.

It knows the true poses and surfaces, but only to choose targets: every motion is an action.
"""

from __future__ import annotations

from dtvla_ros.errors import UserError
from dtvla_ros.thought import Thought

from ..libero.env import LiberoEnv
from ..libero.scene import LiberoScene
from ..libero.start import owner
from .articulated import Door, Drawer, Knob, Push
from .destinations import anchor
from .placing import Place
from .skill import DRAWER_REGION, Move, Skill, holds, read_end_effector, servo, word_of
from .tabletop import OPEN, ExpertStep

SUITES = ('libero_spatial', 'libero_object', 'libero_goal', 'libero_10')

Goal = tuple[str, ...]


def plan(scene: LiberoScene) -> list[Goal]:
    """Return the task's goals in the order in which they can be reached, closing last."""
    return sorted((tuple(g) for g in scene.goals),
                  key=lambda g: (g[0] == 'close', g[0] not in ('turnon', 'open')))


def needed_first(scene: LiberoScene, goal: Goal) -> Goal | None:
    """Return the goal that must hold before the gripper can begin with ``goal``, if any."""
    if goal[0] != 'in':
        return None
    target = owner(scene, goal[2])
    if DRAWER_REGION.search(goal[2]) and 'cabinet' in target:
        return 'open', goal[2]
    return ('open', target) if 'microwave' in target else None


def skill_class(scene: LiberoScene, goal: Goal) -> type[Skill]:
    """Return the skill that reaches a goal.

    Raises UserError if there is none.
    """
    verb, subject = goal[0], goal[1]
    if verb in ('open', 'close'):
        return Drawer if DRAWER_REGION.search(subject) else Door
    if verb == 'turnon':
        return Knob
    if verb in ('in', 'on') and subject in scene.objects:
        return Push if subject.startswith('plate') else Place
    raise UserError(f'no expert can reach the goal "{" ".join(goal)}" of this task')


class LiberoExpert:
    """Reaches the goals in order, and again those that a disturbance undid."""

    def __init__(self, env: LiberoEnv):
        if env.suite not in SUITES:
            raise UserError(f'there is no expert for {env.suite}; there is one for '
                            f'{", ".join(SUITES[:-1])} and {SUITES[-1]}')
        self.env = env
        self.reset()

    def reset(self) -> None:
        """Forget the previous episode."""
        self._skill: Skill | None = None

    def act(self, driving: bool = True) -> ExpertStep:
        """Return the next action for the present state of the environment.

        ``driving`` False: another action is going to be executed. Then a skill that picks and
        places goes by what is there (an object in the fingers is held, whoever took it), not by
        what it asked for before.

        Raises UserError if there is no skill for a goal of the task.
        """
        scene = self.env.scene
        goals = plan(scene)
        ee = read_end_effector(self.env)
        self._choose(goals)
        if self._skill is None:
            name = goals[-1][1]
            move = Move('wait', name, anchor(scene, name), 'wait', ee.position, ee.rotation, OPEN)
        else:
            self._skill.driving = driving
            move = self._skill.act()
        reached = [g for g in goals if holds(scene, g)]
        thought = Thought.measured(
            held=word_of(scene, move.held) if move.held else None,
            done=word_of(scene, reached[-1][1]) if reached else None,
            trouble=move.trouble, phase=move.phase, object=word_of(scene, move.object),
            place=move.place - self.env.base_position, following=move.following,
            move=move.target - ee.position)
        return ExpertStep(servo(ee, move), thought.compact(), move.phase)

    def _choose(self, goals: list[Goal]) -> None:
        """Go on with the present skill until the gripper is free, then take the next open goal.

        Where all goals hold, only a motion that is to end well beyond its limit goes on.
        """
        scene = self.env.scene
        wanted = next((g for g in goals if not holds(scene, g)), None)
        if wanted is None:
            if self._skill is not None and not self._skill.moving():
                self._skill = None
            return
        if self._skill is not None and not self._skill.free():
            return
        first = needed_first(scene, wanted)
        if first is not None and not holds(scene, first):
            wanted = first
        if self._skill is None or self._skill.goal != wanted:
            self._skill = skill_class(scene, wanted)(self.env, wanted)
