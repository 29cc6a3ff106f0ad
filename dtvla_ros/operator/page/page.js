// Shows what the operator node sends, and sends it what is ordered. Texts are never taken as HTML.
'use strict';

const byId = id => document.getElementById(id);
const all = selector => [...document.querySelectorAll(selector)];
const AXES = ['x', 'y', 'z'];
const FASTEST = 0.3; // m/s at the end of an axis
const WINDOW = 10; // s of motion
const SCALES = [50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000]; // ms
const PHASES = ['#8c959f', '#54aeff', '#4ac26b', '#d4a72c', '#c297ff', '#ff8182'];
const SILENT = 3000; // ms without news
const KEPT = 10000; // ms for which a wider scale of the decision's time stays
const AGAIN = 1000; // ms between attempts to connect
const ME = [...crypto.getRandomValues(new Uint32Array(2))].join('-'); // of all pages
const EVERY = 50; // ms between two twists
const TURN = 2.5; // rad/s for 1 m/s of the chosen speed
const KEYS = { // while Shift is held: axis of the twist, and direction
  KeyW: [0, 1], KeyS: [0, -1], KeyA: [1, 1], KeyD: [1, -1], KeyR: [2, 1], KeyF: [2, -1],
  KeyQ: [5, 1], KeyE: [5, -1]};
const HOLD = 5, CLOSE = 0, OPEN = 1; // buttons of a gamepad
const state = {};
const held = new Set();
let buttons = [], moving = false, homing = false;
let socket = null, heard = 0, pressed = false, scale = 0, scaleUntil = 0;

function connect() {
  const scheme = location.protocol === 'https:' ? 'wss:' : 'ws:';
  socket = new WebSocket(`${scheme}//${location.host}/live${location.search}`);
  socket.binaryType = 'arraybuffer';
  socket.onmessage = ({data}) => {
    heard = Date.now();
    if (typeof data === 'string') show(JSON.parse(data));
    else showImage(new Uint8Array(data));
  };
  socket.onclose = () => {
    heard = 0;
    showConnection();
    setTimeout(connect, AGAIN);
  };
}

function order(name, value = '') {
  if (socket && socket.readyState === WebSocket.OPEN) {
    socket.send(JSON.stringify({order: name, value}));
  }
  if (name === 'stop' || name === 'clear') {
    pressed = name === 'stop';
    showConnection();
  }
}

function text(element, value) {
  if (element.textContent !== value) {
    element.textContent = value;
    element.title = value;
  }
}

function rows(list, items, fill) {
  list.replaceChildren(...items.map(item => {
    const row = document.createElement('li');
    fill(row, item);
    row.title = row.textContent;
    return row;
  }));
}

function label(row, said, kind = '') {
  const span = document.createElement('span');
  span.textContent = said;
  span.className = kind;
  row.append(span);
}

function parts(element, list) {
  list.forEach(([words, changed], k) => {
    const mark = document.createElement('mark');
    mark.textContent = words;
    element.append(k ? ' ' : '', changed ? mark : words);
  });
}

const SHOW = {
  policy: value => light('policy', value),
  gate: value => light('gate', value),
  driver({who, page}) {
    const mine = page === ME && who === 'person';
    light('driver', {state: who.toUpperCase(), level: who === 'person' ? 'warn' : 'good', reason:
      mine ? (moving ? 'this page: moving' : 'this page: hold Shift, W A S D R F Q E H, G') :
        who === 'person' ? (page ? 'another page' : 'a teleoperation node') : ''});
    document.body.classList.toggle('driving', mine);
    showAble();
  },
  task({asked, meaning, refused, why}) {
    text(byId('asked'), asked || 'nothing yet');
    text(byId('meaning'), meaning.replace('understood as: ', '') || (asked ? 'as it was said' : ''));
    text(byId('refused'), refused ? `${refused}: ${why}` : '');
    all('#tasks button').forEach(markTold);
  },
  tasks(list) {
    byId('tasks').replaceChildren(...list.map(task => {
      const button = document.createElement('button');
      button.textContent = button.title = task;
      button.dataset.order = 'tell';
      button.dataset.value = task;
      markTold(button);
      return button;
    }));
    showAble();
  },
  thought({parts: list, whole, draft, corrected, confidence}) {
    byId('thought').replaceChildren();
    parts(byId('thought'), list);
    if (!whole) byId('thought').append(' ▌');
    text(byId('draft'), draft);
    text(byId('sure'), confidence && `confidence ${Math.round(100 * confidence)} %`);
    text(byId('corrected'), corrected ? `corrected: ${corrected}` : '');
  },
  thoughts: list => rows(byId('thoughts'), list, (row, {at, parts: said, times, told}) => {
    label(row, times > 1 ? `${at} ×${times}` : at);
    if (told) label(row, `told: ${told}`, 'warn');
    parts(row, said);
  }),
  said: list => rows(byId('said'), list.slice(-3).reverse(), (row, {at, text: said, level}) => {
    label(row, at);
    row.append(said);
    row.className = level;
  }),
  episodes: list => rows(byId('episodes').querySelector('ol'), list,
    (row, {asked, outcome, good, length}) => {
      const end = document.createElement('b');
      end.textContent = outcome;
      end.className = good ? 'good' : 'bad';
      label(row, length);
      row.append(end, ` ${asked}`);
    }),
  recording({on, said}) {
    text(byId('recording'), on ? `● recording ${said}` : said);
    byId('recording').classList.toggle('on', on);
  },
  motion: drawMotion,
  latency: drawLatency,
  cameras: list => all('figcaption').forEach((caption, k) => text(caption, list[k] || '')),
  able: showAble,
  control: showAble,
};

function show(changed) {
  Object.assign(state, changed);
  Object.keys(changed).forEach(key => SHOW[key] && SHOW[key](changed[key]));
  if (state.fault) pressed = false;
  showConnection();
}

function light(id, {state: name, reason, level}) {
  const box = byId(id);
  box.className = `light ${level}`;
  text(box.querySelector('b'), name);
  text(box.querySelector('i'), reason);
}

function markTold(button) {
  const {asked = '', meaning = ''} = state.task || {};
  const told = (meaning.replace('understood as: ', '') || asked).toLowerCase();
  button.classList.toggle('told', button.dataset.value.toLowerCase() === told);
}

function showAble() {
  byId('take').disabled = !(state.control && state.able && state.able.takeover);
  byId('home').disabled = !(state.able && state.able.home && drives());
  byId('home').title = state.able && state.able.home ?
    'hold it, or Shift and H, while this page drives' : 'no home is known of this arm';
  all('[data-order]').forEach(button => {
    const there = state.able && state.able[button.dataset.order];
    button.disabled = !(state.control && there);
    button.title = !state.control ? 'this page is read-only: parameter allow_control' :
      there ? button.textContent : 'no node offers this now';
  });
}

function showConnection() {
  const lost = !heard, late = !lost && Date.now() - heard > SILENT;
  const stop = byId('stop'), banner = byId('banner');
  document.body.classList.toggle('lost', lost || late);
  stop.disabled = lost || !state.control;
  text(stop, lost ? 'not connected' : state.control ? 'STOP' : 'read-only: no STOP here');
  const question = (state.thought || {}).question;
  const fault = state.fault ? `STOPPED: ${state.fault}. Clear stop, then tell it or start it.` :
    pressed ? 'STOP sent, and no FAULT yet: if the arm moves, use its hardware emergency stop.' : '';
  text(banner, lost ?
    'Not connected to the operator node: what stands here is old, and nothing here stops the arm.'
    : late ? 'Nothing is heard of the operator node: what stands here is old.' : fault || (
      question && `The policy asks: ${question}`) || (
      `ROS_DOMAIN_ID ${state.domain}` + (state.control ?
        ' · STOP, SPACE or ESC stops the arm; it replaces no hardware emergency stop' :
        ' · read-only: parameter allow_control')));
  byId('clear').classList.toggle('due', Boolean(fault));
  banner.classList.toggle('bad', Boolean(lost || late || fault));
  banner.classList.toggle('asks', Boolean(question && !(lost || late || fault)));
}

async function showImage(data) {
  const canvas = all('figure canvas')[data[0]];
  const name = (state.cameras || [])[data[0]];
  if (!canvas || !name) return;
  const marks = (state.marks || {})[name] || {};
  const image = await createImageBitmap(new Blob([data.subarray(1)], {type: 'image/jpeg'}));
  const pen = canvas.getContext('2d'), {width, height} = canvas;
  const scale = Math.min(width / image.width, height / image.height);
  const w = image.width * scale, h = image.height * scale;
  const left = (width - w) / 2, top = (height - h) / 2;
  pen.clearRect(0, 0, width, height);
  pen.imageSmoothingQuality = 'high';
  pen.drawImage(image, left, top, w, h);
  image.close();
  const at = point => point && [left + point[0] * w, top + point[1] * h];
  if (marks.path) drawPath(pen, marks.path.map(at), marks.closed);
  if (marks.ring) drawRing(pen, marks.ring.map(at), marks.name);
}

function line(pen, points, colour, width) {
  pen.strokeStyle = colour;
  pen.lineWidth = width;
  pen.beginPath();
  points.forEach(([x, y], k) => k ? pen.lineTo(x, y) : pen.moveTo(x, y));
  pen.stroke();
}

function drawPath(pen, points, closed) {
  pen.lineCap = pen.lineJoin = 'round';
  for (const [colour, width] of [['#fff', 9], [null, 5]]) {
    for (let k = 1; k < points.length; k++) {
      if (points[k - 1] && points[k]) {
        line(pen, [points[k - 1], points[k]],
          colour || (closed[k] ? '#ff8c1a' : '#26bfff'), width);
      }
    }
  }
  const end = points[points.length - 1];
  if (end) {
    pen.fillStyle = closed[closed.length - 1] ? '#ff8c1a' : '#26bfff';
    pen.beginPath();
    pen.arc(...end, 8, 0, 2 * Math.PI);
    pen.fill();
    pen.strokeStyle = '#fff';
    pen.lineWidth = 2;
    pen.stroke();
  }
}

function drawRing(pen, points, name) {
  if (points.some(point => !point)) return;
  line(pen, points, '#fff', 7);
  line(pen, points, '#bf3989', 4);
  const x = Math.min(...points.map(p => p[0])), y = Math.min(...points.map(p => p[1]));
  pen.font = '600 24px system-ui, sans-serif';
  const width = pen.measureText(name).width + 14;
  const left = Math.max(0, Math.min(x, pen.canvas.width - width)), top = Math.max(30, y - 8);
  pen.fillStyle = '#bf3989';
  pen.fillRect(left, top - 30, width, 32);
  pen.fillStyle = '#fff';
  pen.fillText(name, left + 7, top - 6);
}

function fitted(selector) { // two pixels of a canvas for one of the page, however wide that is
  const canvas = document.querySelector(selector), {clientWidth: w, clientHeight: h} = canvas;
  if (canvas.width !== 2 * w || canvas.height !== 2 * h) {
    canvas.width = 2 * w;
    canvas.height = 2 * h;
  }
  return canvas;
}

function drawMotion(samples) {
  const canvas = fitted('#motion canvas'), pen = canvas.getContext('2d');
  const {width, height} = canvas, strip = height / 3, left = 74;
  pen.clearRect(0, 0, width, height);
  pen.font = '22px system-ui, sans-serif';
  const now = samples.length ? samples[samples.length - 1][0] : 0;
  AXES.forEach((axis, k) => {
    const zero = strip * (k + 0.5);
    const down = v => zero - Math.max(-1, Math.min(1, v / FASTEST)) * strip * 0.44;
    line(pen, [[left, zero], [width, zero]], '#d1d9e0', 1.5);
    pen.fillStyle = '#59636e';
    pen.fillText(axis, 4, zero + 7);
    pen.font = '17px system-ui, sans-serif';
    pen.fillText(`${FASTEST}`, 30, zero - strip * 0.44 + 15);
    pen.fillText(`−${FASTEST}`, 22, zero + strip * 0.44);
    pen.font = '22px system-ui, sans-serif';
    for (const [column, colour, thick] of [[1, '#bc4c00', 3], [4, '#0550ae', 3]]) {
      line(pen, samples.map(row => [
        width - (now - row[0]) / WINDOW * (width - left), down(row[column + k])]), colour, thick);
    }
  });
}

function drawLatency({total, phases, budget}) {
  if (total === undefined) return;
  const canvas = fitted('#latency canvas'), pen = canvas.getContext('2d');
  const {width, height} = canvas, ms = value => 1000 * value;
  const needed = SCALES.find(end => end >= Math.max(ms(total), ms(budget || 0))) || ms(total);
  if (needed >= scale || Date.now() > scaleUntil) {
    scale = needed;
    scaleUntil = Date.now() + KEPT;
  }
  const across = value => ms(value) / scale * (width - 4);
  pen.clearRect(0, 0, width, height);
  pen.font = '20px system-ui, sans-serif';
  let x = 0;
  phases.forEach(([name, seconds], k) => {
    const long = across(seconds);
    pen.fillStyle = PHASES[k % PHASES.length];
    pen.fillRect(x, 8, long, height - 16);
    pen.fillStyle = '#1f2328';
    if (pen.measureText(name).width + 8 < long) pen.fillText(name, x + 4, height / 2 + 7);
    x += long;
  });
  pen.textAlign = 'right';
  pen.fillStyle = '#59636e';
  pen.fillText(`${scale.toFixed(0)} ms`, width - 6, height / 2 + 7);
  pen.textAlign = 'left';
  if (budget) {
    pen.fillStyle = ms(total) > ms(budget) ? '#cf222e' : '#1f2328';
    pen.fillRect(across(budget) - 2, 0, 4, height);
  }
  text(byId('took'), `${ms(total).toFixed(0)} ms` + (budget ?
    `, budget ${ms(budget).toFixed(0)} ms` : '') + ': ' +
    phases.map(([name, seconds]) => `${name} ${ms(seconds).toFixed(0)}`).join(', '));
}

document.addEventListener('click', ({target}) => {
  const {order: name, value = ''} = target.dataset || {};
  if (!name || target.disabled || target.type === 'submit' && target.form) return;
  order(name, value === 'true' ? true : value === 'false' ? false : value);
});
for (const id of ['tell', 'override']) {
  byId(id).addEventListener('submit', event => {
    event.preventDefault();
    const field = event.target.elements.value;
    if (field.value.trim()) order(id, field.value.trim());
    if (id === 'tell') field.value = '';
  });
}
byId('thought').addEventListener('click', ({currentTarget}) => {
  const field = byId('override').elements.value;
  field.value = currentTarget.textContent.replace(' ▌', '');
  field.focus();
});
byId('stop').addEventListener('pointerdown', () => order('stop'));
byId('stop').addEventListener('click', () => order('stop')); // by the keyboard
for (const kind of ['keydown', 'keyup']) { // a button takes a blank when it is released
  document.addEventListener(kind, event => {
    const typing = event.target.tagName === 'INPUT';
    if (event.key === 'Escape' || event.key === ' ' && !typing) {
      event.preventDefault();
      if (state.control && kind === 'keydown') order('stop');
    }
  }, true);
}
byId('take').addEventListener('click', () => order('takeover', ME));

// Driving: a twist goes out again and again; without the dead-man key it is zero.
function drives() {
  return Boolean(state.driver) && state.driver.page === ME;
}

function shifted() {
  return held.has('ShiftLeft') || held.has('ShiftRight');
}

function wanted() {
  const twist = [0, 0, 0, 0, 0, 0];
  if (shifted()) {
    for (const key of held) if (KEYS[key]) twist[KEYS[key][0]] += KEYS[key][1];
  }
  const pad = [...navigator.getGamepads()].find(found => found && found.mapping === 'standard');
  if (pad) {
    const axis = k => Math.abs(pad.axes[k]) > 0.1 ? -pad.axes[k] : 0;
    if (pad.buttons[HOLD].pressed) {
      [[0, 1], [1, 0], [2, 3], [5, 2]].forEach(([to, from]) => { twist[to] += axis(from); });
    }
    const now = pad.buttons.map(button => button.pressed);
    if (now[CLOSE] && !buttons[CLOSE]) order('grip', true);
    if (now[OPEN] && !buttons[OPEN]) order('grip', false);
    buttons = now;
  }
  const speed = Number(byId('speed').value);
  return twist.map((v, k) => Math.max(-1, Math.min(1, v)) * speed * (k < 3 ? 1 : TURN));
}

function driveOn() {
  if (!drives()) return;
  const home = !byId('home').disabled && (homing || shifted() && held.has('KeyH'));
  const twist = wanted(), now = home || twist.some(v => v);
  if (home) order('home', byId('speed').value);
  else order('drive', twist.map(v => v.toFixed(4)).join(' '));
  if (now !== moving) {
    moving = now;
    SHOW.driver(state.driver);
  }
}

for (const kind of ['keydown', 'keyup']) {
  document.addEventListener(kind, event => {
    if (!drives() || event.target.tagName === 'INPUT') return;
    if (kind === 'keyup') held.delete(event.code);
    else held.add(event.code);
    if (kind === 'keydown' && event.code === 'KeyG' && !event.repeat) {
      closed = !closed;
      order('grip', closed);
    }
    if (KEYS[event.code]) event.preventDefault();
  });
}
let closed = false;
for (const [target, kind] of [[window, 'blur'], [document, 'visibilitychange']]) {
  target.addEventListener(kind, () => { // keys that are released elsewhere
    held.clear();
    homing = false;
  });
}
byId('home').addEventListener('pointerdown', () => { homing = true; });
for (const kind of ['pointerup', 'pointercancel']) {
  document.addEventListener(kind, () => { homing = false; });
}
byId('home').addEventListener('pointerleave', () => { homing = false; });
setInterval(driveOn, EVERY);
setInterval(showConnection, 500);
connect();
