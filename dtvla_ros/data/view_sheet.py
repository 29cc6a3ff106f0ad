"""Episodes as one picture: frames along the time, phases, thoughts and commands under them."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dtvla_ros.data.view import Story, runs
from dtvla_ros.errors import UserError

COLUMNS = 10  # pictures along the time
WIDTH = 15.0  # of the sheet [inch]
LETTERS = 23  # in a line under a picture
COLOURS = ('#7aa6c2', '#e0a458', '#8fb573', '#c98a9b', '#9d8ec7', '#c7b78e', '#6fb7a8', '#b0b0b0',
           '#d98f6a', '#88a0d8')
AXES = (('x', '#c0392b'), ('y', '#2e8b57'), ('z', '#2f5fa8'))
CLOSED = '#e8b26a'


def phase_colours(stories: Sequence[Story]) -> dict[str, str]:
    """Return a colour for every phase, in the order of their first appearance."""
    names = dict.fromkeys(phase for story in stories for phase in story.phases)
    return {name: COLOURS[k % len(COLOURS)] for k, name in enumerate(names)}


def pyplot() -> Any:
    """Return matplotlib's pyplot without a window. Raises ``UserError`` where it is missing."""
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("matplotlib is not installed; run: pip install 'dtvla_ros[train]'"
                        ) from error
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    return plt


def draw_commands(axes: Any, story: Story) -> None:
    """Draw translation commands, and where the gripper is told to close, over the frames."""
    steps = np.arange(len(story) + 1)
    last = np.vstack([story.action, story.action[-1:]])
    close = last[:, -1] > (0.5 if story.action[:, -1].min() >= 0 else 0.0)
    axes.fill_between(steps, -1.25, 1.25, where=close, step='post', color=CLOSED, alpha=0.35,
                      linewidth=0, label='told to close')
    axes.axhline(0.0, color='#c8ccd2', linewidth=0.8)
    for k, (name, colour) in enumerate(AXES[:story.action.shape[1] - 1]):
        axes.step(steps, last[:, k], where='post', color=colour, linewidth=1.3, label=name)
    if story.wide is not None:
        axes.plot(steps[:-1] + 0.5, 2.0 * story.wide - 1.0, color='#333333', linewidth=1.1,
                  linestyle=(0, (3, 2)), label='opening')
    axes.set_xlim(0, len(story))
    axes.set_ylim(-1.25, 1.25)


def curves_svg(story: Story) -> str:
    """Return the commands as an SVG image as wide as the time, without margins."""
    plt = pyplot()
    with plt.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'dtvla'}):
        figure = plt.figure(figsize=(11, 1.25))
        axes = figure.add_axes((0, 0, 1, 1))
        draw_commands(axes, story)
        axes.axis('off')
        text = io.StringIO()
        figure.savefig(text, format='svg', transparent=True, metadata={'Date': None})
        plt.close(figure)
    return text.getvalue()


def write_sheet(path: Path, stories: Sequence[Story]) -> None:
    """Write a PNG with all stories below each other."""
    plt = pyplot()
    colours = phase_colours(stories)
    cell = WIDTH / COLUMNS
    heights = [cell * len(s.pictures) + (1.25 if s.thoughts else 0.25) + 1.6 for s in stories]
    figure = plt.figure(figsize=(WIDTH, sum(heights)), layout='none')
    parts = figure.subfigures(len(stories), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, story, height in zip(parts, stories, heights, strict=True):
        _draw(part, story, height, cell, colours)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, facecolor='white')
    plt.close(figure)


def _draw(part: Any, story: Story, height: float, cell: float, colours: dict[str, str]) -> None:
    """Draw one episode: from the top a title, pictures, phases, thoughts, commands."""
    facts = ', '.join(f'{name} {value}' for name, value in story.facts.items())
    part.text(0.004, 1 - 0.16 / height, f'episode {story.number}: {story.task}', fontsize=11,
              fontweight='bold', va='center')
    part.text(0.996, 1 - 0.16 / height, f'{len(story) / story.fps:.1f} s, {len(story)} frames'
              + (f'; {facts}' if facts else ''), fontsize=7.5, va='center', ha='right',
              color='#555555')
    shown = story.shown(COLUMNS) if len(story.frames) else []
    top = 0.32
    for pictures in story.pictures.values():
        for column, index in enumerate(shown):
            axes = part.add_axes((column / COLUMNS + 0.001, 1 - (top + cell) / height,
                                  1 / COLUMNS - 0.002, cell / height))
            axes.imshow(pictures[index], aspect='auto')
            axes.axis('off')
        top += cell
    axes = part.add_axes((0, 1 - (top + 0.2) / height, 1, 0.17 / height))
    axes.set_xlim(0, len(story))
    axes.set_ylim(0, 1)
    axes.axis('off')
    for name, first, last in runs(story.phases):
        axes.axvspan(first, last, color=colours[name], linewidth=0)
        if last - first > len(story) * 0.04:
            axes.text((first + last) / 2, 0.45, name, ha='center', va='center', fontsize=7.5)
    top += 0.25
    if story.thoughts:
        for column, index in enumerate(shown):
            thought = story.thoughts[int(story.frames[index])]
            lines = textwrap.fill(thought, LETTERS, max_lines=8, placeholder=' ...')
            part.text((column + 0.05) / COLUMNS, 1 - (top + 0.04) / height, lines, fontsize=7,
                      va='top', linespacing=1.15)
        top += 1.0
    axes = part.add_axes((0, 1 - (top + 0.95) / height, 1, 0.9 / height))
    draw_commands(axes, story)
    axes.axis('off')
    axes.legend(loc='upper right', bbox_to_anchor=(1.0, -0.02), fontsize=7, ncols=5,
                frameon=False, borderpad=0.2, handlelength=1.6)
