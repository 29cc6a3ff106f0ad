"""The review page: one HTML file with its data, pictures and script inside."""

from __future__ import annotations

from string import Template

PAGE = Template("""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>$title</title><style>
body { font: 15px/1.4 system-ui, sans-serif; margin: 0; color: #1b1e23; background: #f4f5f7 }
header { position: sticky; top: 0; background: #fff; padding: .6rem 1rem; display: flex; gap: 1rem;
         align-items: center; border-bottom: 1px solid #dde1e6; z-index: 1 }
header h1 { font-size: 1rem; margin: 0; flex: 1 }
section { margin: 1rem; padding: .8rem 1rem; background: #fff; border: 1px solid #dde1e6 }
h2 { font-size: 1rem; margin: 0 0 .6rem }
.frames { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: .8rem }
article { border: 1px solid #dde1e6; border-left: 5px solid #b8c0cb; padding: .5rem .6rem }
article.accept { border-left-color: #1b7f4b } article.edit { border-left-color: #16407a }
article.reject { border-left-color: #b3261e; opacity: .65 }
article:focus-within, article:focus { outline: 2px solid #7c93b5 }
img { width: 48%; image-rendering: auto; vertical-align: top; margin-right: 1% }
.when { color: #545b66; font-size: .85em; margin: .3rem 0 }
.says b { font-weight: 600 } .finding { color: #b3261e; font-size: .9em; margin: .2rem 0 }
button { font: inherit; padding: .15rem .6rem; border: 1px solid #b8c0cb; background: #fff;
         cursor: pointer }
button.on { background: #1b1e23; color: #fff }
form { display: grid; grid-template-columns: 5rem 1fr; gap: .25rem .4rem; margin: .4rem 0 }
form label { display: contents } input, select { font: inherit; min-width: 0 }
</style></head><body>
<header><h1>$title</h1><span id="count"></span>
<button id="clean" title="Accept what is undecided and has no finding">accept the
faultless</button>
<button id="download">download decisions</button></header>
<main></main>
<script type="application/json" id="data">$data</script>
<script>
'use strict';
const data = JSON.parse(document.getElementById('data').textContent);
const store = 'dtvla-review-' + data.labels;
let decisions = {};
try { decisions = JSON.parse(localStorage.getItem(store) || '{}'); } catch (error) { }
const fields = ['phase', 'object', 'holding', 'done', 'trouble', 'next', 'reason'];
const cards = new Map();

function element(name, attributes, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
  node.append(...children);
  return node;
}
function id(episode, frame) { return episode.episode + ':' + frame.frame; }
function choices(episode, field) {
  if (field === 'phase' || field === 'next') return data.phases;
  if (field === 'trouble') return data.troubles;
  return field === 'object' ? episode.things : ['nothing', ...episode.things];
}
function decide(episode, frame, decision, label) {
  const key = id(episode, frame);
  const same = decisions[key] && decisions[key].decision === decision && decision !== 'edit';
  if (same) delete decisions[key];
  else decisions[key] = {episode: episode.episode, frame: frame.frame, decision,
                         label: decision === 'reject' ? null : label};
  try { localStorage.setItem(store, JSON.stringify(decisions)); } catch (error) { }
  draw(episode, frame);
  count();
}
function count() {
  const made = Object.values(decisions);
  const of = kind => made.filter(d => d.decision === kind).length;
  document.getElementById('count').textContent = of('accept') + ' accepted, ' + of('edit') +
    ' edited, ' + of('reject') + ' rejected, ' + (cards.size - made.length) + ' open';
}
function says(label) {
  const node = element('div', {class: 'says'}, element('b', {}, label.phase + ' ' + label.object),
    '; holding ' + label.holding + ', done ' + label.done +
    (label.trouble === 'none' ? '' : ', ' + label.trouble) + ', next ' + label.next);
  if (label.reason) node.append(element('div', {}, label.reason));
  return node;
}
function editor(episode, frame, label) {
  const form = element('form');
  for (const field of fields) {
    let input = element('input', {name: field, maxlength: 200});
    const allowed = field === 'reason' ? [] : choices(episode, field);
    if (allowed.length) {
      input = element('select', {name: field});
      for (const word of new Set([...allowed, label[field]]))
        input.append(element('option', {value: word}, word));
    }
    input.value = label[field];
    form.append(element('label', {}, element('span', {}, field), input));
  }
  form.append(element('span'), element('button', {}, 'save'));
  form.onsubmit = event => {
    event.preventDefault();
    decide(episode, frame, 'edit', Object.fromEntries(new FormData(form)));
  };
  return form;
}
function draw(episode, frame, editing) {
  const card = cards.get(id(episode, frame));
  const made = decisions[id(episode, frame)];
  const label = made && made.label || frame.label;
  card.className = made ? made.decision : '';
  card.replaceChildren();
  for (const source of frame.pictures) card.append(element('img', {src: source, alt: ''}));
  card.append(element('div', {class: 'when'}, 'frame ' + frame.frame + ', ' +
    frame.seconds.toFixed(1) + ' s: ' + frame.motion), says(label));
  for (const text of frame.findings) card.append(element('div', {class: 'finding'}, text));
  if (editing) { card.append(editor(episode, frame, label)); return; }
  for (const [kind, action] of [
      ['accept', () => decide(episode, frame, 'accept', frame.label)],
      ['edit', () => draw(episode, frame, true)],
      ['reject', () => decide(episode, frame, 'reject')]]) {
    const button = element('button', {class: made && made.decision === kind ? 'on' : '',
      'data-do': kind}, kind);
    button.onclick = action;
    card.append(button, ' ');
  }
}
function exportText() {
  const rows = Object.values(decisions).sort((a, b) => a.episode - b.episode || a.frame - b.frame);
  return [{kind: 'decisions', dataset: data.dataset, labels: data.labels}, ...rows]
    .map(row => JSON.stringify(row)).join('\\n') + '\\n';
}
for (const episode of data.episodes) {
  const grid = element('div', {class: 'frames'});
  for (const frame of episode.frames) {
    const card = element('article', {tabindex: 0, id: id(episode, frame)});
    cards.set(id(episode, frame), card);
    card.onkeydown = event => {
      if (event.target !== card) return;
      if (event.key === 'a') decide(episode, frame, 'accept', frame.label);
      if (event.key === 'r') decide(episode, frame, 'reject');
      if (event.key === 'e') { event.preventDefault(); draw(episode, frame, true); }
    };
    grid.append(card);
    draw(episode, frame);
  }
  document.querySelector('main').append(element('section', {},
    element('h2', {}, 'Episode ' + episode.episode + ': ' + episode.instruction), grid));
}
document.getElementById('clean').onclick = () => {
  for (const episode of data.episodes) for (const frame of episode.frames)
    if (!decisions[id(episode, frame)] && !frame.findings.length)
      decide(episode, frame, 'accept', frame.label);
};
document.getElementById('download').onclick = () => {
  const link = element('a', {download: 'decisions.jsonl',
    href: URL.createObjectURL(new Blob([exportText()], {type: 'application/jsonl'}))});
  link.click();
  URL.revokeObjectURL(link.href);
};
count();
</script></body></html>
""")
