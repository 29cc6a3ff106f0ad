"""Episodes as one HTML file that needs nothing else; moving along the time shows each frame."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from html import escape
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dtvla_ros.data import layout
from dtvla_ros.data.view import Story, runs
from dtvla_ros.data.view_sheet import AXES, CLOSED, curves_svg, phase_colours

THUMBNAILS = 12
QUALITY = 82

_PAGE = Template("""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>$title</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
:root { color-scheme: light }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 78rem; margin: 1.5rem auto;
       padding: 0 1rem; color: #1b1e23; background: #fff }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.1rem; margin: 0 }
header p, .facts { color: #5a616c; margin: .2rem 0 .8rem }
section { border-top: 1px solid #d8dce2; padding: 1rem 0 1.4rem }
.row { display: flex; gap: 1.2rem; align-items: flex-start }
.now { flex: 0 0 18rem } .time { flex: 1; min-width: 0; position: relative; cursor: crosshair }
.pair { display: flex; gap: .4rem } .pair figure { flex: 1; margin: 0; min-width: 0 }
figcaption { font-size: .75rem; color: #5a616c }
.frame { background-repeat: no-repeat; image-rendering: auto }
.strip { display: grid; grid-template-columns: repeat($columns, 1fr); gap: 1px;
         margin-bottom: 2px }
.phases { position: relative; height: 1.25rem; margin: 3px 0; background: #f1f3f5 }
.phases i { position: absolute; top: 0; bottom: 0; font: 11px/1.25rem system-ui, sans-serif;
            text-align: center; overflow: hidden; white-space: nowrap }
.curves { display: block; width: 100%; height: 6.2rem; background: #fafbfc }
.cursor { position: absolute; top: 0; bottom: 0; width: 0; border-left: 1.5px solid #111;
          pointer-events: none }
.clock { font-variant-numeric: tabular-nums; font-weight: 600; margin: .5rem 0 .1rem }
.said { margin: 0; min-height: 5.8em; overflow-wrap: anywhere }
.key { font-size: .75rem; color: #5a616c; margin: .15rem 0 0 } .key b { font-weight: 600 }
details { margin-top: .6rem } details div { max-height: 21rem; overflow: auto }
summary { cursor: pointer; color: #2f5fa8 }
table { border-collapse: collapse; margin-top: .4rem; font-size: .9rem }
td { padding: .12rem .8rem .12rem 0; vertical-align: top; border-bottom: 1px solid #eceff2 }
td:nth-child(1) { font-variant-numeric: tabular-nums; white-space: nowrap; color: #5a616c }
td:nth-child(2) { white-space: nowrap } td b { color: #a33c1d; font-weight: 600 }
tr.at td { background: #fff4d6 }
@media (max-width: 60rem) { .row { flex-direction: column } .now { flex: none; width: 18rem } }
$sprites
</style></head><body>
<header><h1>$title</h1><p>$summary</p></header>
$episodes
<script>
for (const section of document.querySelectorAll('section')) {
  const data = JSON.parse(section.dataset.story), time = section.querySelector('.time');
  const big = section.querySelectorAll('.now .frame'), rows = section.querySelectorAll('tr');
  const show = frame => {
    frame = Math.max(0, Math.min(data.length - 1, frame));
    const picture = Math.min(data.pictures - 1, Math.floor(frame / data.stride));
    const across = picture % data.columns, down = Math.floor(picture / data.columns);
    for (const box of big) box.style.backgroundPosition =
      (data.columns > 1 ? 100 * across / (data.columns - 1) : 0) + '% ' +
      (data.rows > 1 ? 100 * down / (data.rows - 1) : 0) + '%';
    section.querySelector('.cursor').style.left = 100 * (frame + .5) / data.length + '%';
    const run = data.runs.findIndex(r => frame < r[1]);
    section.querySelector('.clock').textContent = (frame / data.fps).toFixed(2) + ' s, frame ' +
      frame + (data.phases.length ? ', ' + data.phases[frame] : '');
    if (run >= 0) section.querySelector('.said').textContent = data.runs[run][2];
    rows.forEach((row, k) => row.classList.toggle('at', k === run));
    section.frame = frame;
  };
  const at = event => {
    const box = time.getBoundingClientRect();
    show(Math.floor((event.clientX - box.left) / box.width * data.length));
  };
  time.addEventListener('pointermove', at);
  time.addEventListener('pointerdown', at);
  time.tabIndex = 0;
  time.addEventListener('keydown', event => {
    const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (step) { show((section.frame || 0) + step); event.preventDefault(); }
  });
  rows.forEach((row, k) => row.addEventListener('click', () => show(data.runs[k][0])));
  show(0);
}
</script>
</body></html>
""")


def page(name: str, stories: Sequence[Story], info: Mapping[str, Any]) -> str:
    """Return the page of a dataset's stories."""
    colours = phase_colours(stories)
    return _PAGE.substitute(
        title=escape(name), columns=THUMBNAILS,
        summary=escape(
            f'{len(stories)} of {info["total_episodes"]} episodes, {info["fps"]} frames a second, '
            f'{info.get("robot_type") or "unknown robot"}, LeRobot {info["codebase_version"]}. '
            'Move along a timeline, or click it and use the arrow keys.'),
        sprites='\n'.join(_sprite(story, key) for story in stories for key in story.pictures),
        episodes='\n'.join(_section(story, colours) for story in stories))


def _grid(story: Story) -> tuple[int, int]:
    """Return columns and rows of the one picture that holds all frames of a camera."""
    columns = max(1, math.ceil(math.sqrt(len(story.frames))))
    return columns, max(1, math.ceil(len(story.frames) / columns))


def _class(story: Story, key: str) -> str:
    return f'e{story.number}c{list(story.pictures).index(key)}'


def _sprite(story: Story, key: str) -> str:
    """Return the style rule that carries all frames of a camera."""
    columns, rows = _grid(story)
    pictures = story.pictures[key]
    height, width = pictures.shape[1:3]
    sheet = np.zeros((rows * height, columns * width, 3), np.uint8)
    for k, picture in enumerate(pictures):
        down, across = divmod(k, columns)
        sheet[down * height:(down + 1) * height, across * width:(across + 1) * width] = picture
    return (f'.{_class(story, key)} {{ aspect-ratio: {width} / {height}; '
            f'background-size: {100 * columns}% {100 * rows}%; '
            f'background-image: url(data:image/jpeg;base64,{_jpeg(sheet)}) }}')


def _jpeg(image: NDArray[np.uint8]) -> str:
    data = io.BytesIO()
    Image.fromarray(image).save(data, 'jpeg', quality=QUALITY)
    return base64.b64encode(data.getvalue()).decode()


def _place(story: Story, index: int) -> str:
    columns, rows = _grid(story)
    down, across = divmod(index, columns)
    return (f'background-position: {100 * across / max(columns - 1, 1):.4g}% '
            f'{100 * down / max(rows - 1, 1):.4g}%')


def _section(story: Story, colours: Mapping[str, str]) -> str:
    said = list(runs(story.thoughts))
    columns, rows = _grid(story)
    data = {
        'length': len(story), 'fps': story.fps, 'pictures': len(story.frames),
        'stride': int(story.frames[1]) if len(story.frames) > 1 else 1,
        'columns': columns, 'rows': rows, 'phases': story.phases,
        'runs': [[first, last, text] for text, first, last in said]}
    facts = ', '.join(f'{name.replace("_", " ")} {value}' for name, value in story.facts.items())
    cameras = ''.join(
        f'<figure><div class="frame {_class(story, key)}"></div>'
        f'<figcaption>{escape(layout.CAMERAS.get(key, key))}</figcaption></figure>'
        for key in story.pictures)
    shown = story.shown(THUMBNAILS) if len(story.frames) else []
    strips = ''.join(
        '<div class="strip">' + ''.join(
            f'<div class="frame {_class(story, key)}" style="{_place(story, k)}"></div>'
            for k in shown) + '</div>' for key in story.pictures)
    return (
        f'<section data-story="{escape(json.dumps(data))}">'
        f'<h2>Episode {story.number}: {escape(story.task)}</h2>'
        f'<p class="facts">{len(story)} frames, {len(story) / story.fps:.1f} s'
        f'{", " if facts else ""}{escape(facts)}</p><div class="row">'
        f'<div class="now"><div class="pair">{cameras}</div><p class="clock"></p>'
        f'<p class="said">{"" if said else "This dataset tells no thought."}</p></div>'
        f'<div class="time">{strips}{_phases(story, colours)}{_curves(story)}'
        '<div class="cursor"></div></div></div>'
        f'{_key(story)}{_thoughts(story, said)}</section>')


def _phases(story: Story, colours: Mapping[str, str]) -> str:
    if not story.phases:
        return ''
    count = len(story)
    parts = ''.join(
        f'<i style="left:{100 * first / count:.3f}%;width:{100 * (last - first) / count:.3f}%;'
        f'background:{colours[name]}" title="{escape(name)}">'
        f'{escape(name) if (last - first) / count > 0.05 else ""}</i>'
        for name, first, last in runs(story.phases))
    return f'<div class="phases">{parts}</div>'


def _curves(story: Story) -> str:
    svg = curves_svg(story).replace('<svg ', '<svg preserveAspectRatio="none" ', 1)
    data = base64.b64encode(svg.encode()).decode()
    return (f'<img class="curves" alt="commands of episode {story.number}" draggable="false" '
            f'src="data:image/svg+xml;base64,{data}">')


def _key(story: Story) -> str:
    lines = ''.join(f' <b style="color:{colour}">{name}</b>' for name, colour in AXES)
    wide = ', dashed: opening of the gripper' if story.wide is not None else ''
    return (f'<p class="key">Commands, -1 to 1:{lines}{wide}; '
            f'<span style="background:{CLOSED}66">&nbsp;told to close&nbsp;</span></p>')


def _thoughts(story: Story, said: Sequence[tuple[str, int, int]]) -> str:
    """Return the thoughts as a table, what is new in each against the one before in bold."""
    if not said:
        return ''
    rows, before = [], ''
    for text, first, last in said:
        phase = story.phases[first] if story.phases else ''
        rows.append(
            f'<tr><td>{first / story.fps:.2f} - {last / story.fps:.2f} s</td>'
            f'<td>{escape(phase)}</td><td>{_changed(before, text)}</td></tr>')
        before = text
    return (f'<details open><summary>{len(said)} thoughts</summary><div><table>{"".join(rows)}'
            '</table></div></details>')


def _changed(before: str, text: str) -> str:
    old, new = before.split(), text.split()
    if not new:
        return '<i>no thought</i>'
    words: list[str] = []
    for what, _, _, first, last in SequenceMatcher(None, old, new, False).get_opcodes():
        part = escape(' '.join(new[first:last]))
        if part:
            words.append(part if what == 'equal' or not old else f'<b>{part}</b>')
    return ' '.join(words)
