"use strict";
// The page: what is chosen, what is asked of the server, what is drawn. A frozen copy holds all answers itself.

const $ = (id) => document.getElementById(id);
const frozen = $("frozen") ? JSON.parse($("frozen").textContent) : null;
const MOST_BYTES = 20 * 2 ** 20;
const MOST_POINTS = 6000; // of one convolution and those above it
const USUAL = { radius: 5, bias: 1, alpha: 1, beta: 0.5 };

const state = {
  catalog: null, model: null, picture: null, scale: 1, angle: 0,
  look: null, image: null, toned: null, responses: null,
  unit: 0, // index of the step whose output is traced
  place: null, // [y, x] in the picture that is pointed to
  held: false, levels: [true, true, true], groups: new Set(), chosen: null,
};
let colours = palette(), asking = false, again = false, drawing = false;

/** Make an element with properties and children. */
function made(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function trouble(sentence) {
  $("trouble").hidden = !sentence;
  $("trouble").textContent = sentence || "";
}

/** Return what the server answers; its sentence is the error where it refuses. */
async function ask(address, options) {
  let response;
  try {
    response = await fetch(address, options);
  } catch {
    throw new Error("The server does not answer. Is pliant explore still running?");
  }
  const answer = await response.json().catch(() => ({ error: `The server answered ${response.status}.` }));
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

/** Return the answer of a frozen copy that is nearest to the pose asked for, and set the pose to it. */
function thawed() {
  const far = (l) => Math.abs(Math.log2(l.scale / state.scale)) + Math.abs(l.angle - state.angle) / 60;
  const there = frozen.looks.filter((l) => l.model === state.model.id && l.picture === state.picture.id);
  const best = there.reduce((a, b) => (far(b) < far(a) ? b : a));
  Object.assign(state, { scale: best.scale, angle: best.angle });
  return structuredClone(best.look);
}

/** Ask for the network's answer to what is chosen now; while one is on its way, only the last wish counts. */
async function look() {
  if (!state.model || !state.picture) return;
  if (asking) {
    again = true;
    return;
  }
  asking = true;
  const late = setTimeout(() => $("stage").classList.add("busy"), 250);
  try {
    do {
      again = false;
      const asked = { model: state.model.id, picture: state.picture.id, scale: state.scale, angle: state.angle };
      const answer = frozen ? thawed() : await ask(`/api/look?${new URLSearchParams(asked)}`);
      if (!again) await show(answer);
    } while (again);
    trouble("");
  } catch (error) {
    trouble(error.message);
  } finally {
    asking = false;
    clearTimeout(late);
    $("stage").classList.remove("busy");
    $("stage").dataset.ready = String(Number($("stage").dataset.ready || 0) + 1);
  }
}

/** Take an answer over. */
async function show(answer) {
  const image = new Image();
  image.src = answer.picture;
  await image.decode();
  const before = state.look;
  state.look = ready(answer);
  state.image = image;
  state.toned = toned(image, answer.grey, colours);
  state.responses = channels(answer.responses);
  if (answer.detection && answer.detection.bins) {
    answer.detection.moves = unpack(answer.detection.bins);
    answer.detection.weights = answer.detection.masks ? unpack(answer.detection.masks) : null;
  }
  const names = (l) => l && l.steps.map((s) => s.name).join();
  if (names(before) !== names(answer)) {
    build();
    $("channel").max = state.responses.length - 1;
    $("channel").value = strongest();
  }
  if (!state.place || before.width !== answer.width || before.height !== answer.height) {
    state.place = [(answer.height - 1) / 2, (answer.width - 1) / 2];
    state.held = false;
  }
  state.chosen = null;
  poseSaid();
  answersSaid();
  objectsSaid();
  redraw();
}

/** Return the channel with the largest response in the middle of the picture. */
function strongest() {
  const { width, height } = state.look.responses, middle = Math.floor(height / 2) * width + Math.floor(width / 2);
  const there = state.responses.map((channel) => channel[middle]);
  return there.indexOf(Math.max(...there));
}

// ---- controls that depend on the network

function units() {
  const steps = state.look.steps.map((step, i) => [step, i]);
  const own = steps.filter(([step]) => step.deformable);
  return (own.length ? own : steps.filter(([step]) => step.branches)).reverse();
}

function build() {
  const { steps } = state.look, listed = units();
  state.unit = listed[0][1];
  $("units").replaceChildren(...listed.map(([step, i], n) =>
    made("label", {}, made("input", { type: "radio", name: "unit", value: i, checked: n === 0, onchange: () => { state.unit = i; levels(); redraw(); } }), step.name)));
  const groups = Math.max(...steps.map((step) => step.groups));
  state.groups = new Set(Array.from({ length: groups }, (_, g) => g));
  $("groups-field").hidden = groups < 2;
  $("groups").replaceChildren(...[...state.groups].map((g) =>
    made("label", {}, made("input", { type: "checkbox", checked: true, onchange: (event) => {
      if (event.target.checked) state.groups.add(g); else state.groups.delete(g);
      levels();
      redraw();
    } }), `${g + 1}`)));
  $("modulation").disabled = !steps.some((step) => step.modulated);
  $("mode").hidden = !state.look.detection;
  $("bins").disabled = !state.look.detection || !state.look.detection.bins;
  $("weights").disabled = !state.look.detection || !state.look.detection.masks;
  if (!state.look.detection) $("mode-points").checked = true;
  modeSaid();
  levels();
}

/** Return the convolutions that begin paths for the chosen unit, topmost first: three, or fewer where points are too many. */
function splitting() {
  const found = [];
  let count = 1;
  for (let i = state.unit; i >= 0 && found.length < LEVELS.length; i--) {
    const step = state.look.steps[i];
    if (!step.branches) continue;
    count *= step.T;
    if (count > MOST_POINTS && found.length) break;
    found.push(step);
  }
  return found;
}

function levels() {
  let count = 1;
  $("levels").replaceChildren(...splitting().map((step, n) => {
    count *= taps(step, state).chosen.length;
    return made("label", {}, made("input", { type: "checkbox", id: `level-${n + 1}`, checked: state.levels[n], onchange: (event) => { state.levels[n] = event.target.checked; redraw(); } }),
      made("span", { textContent: n ? `… through ${step.name}` : step.name }), made("small", { textContent: `${count} points` }));
  }));
}

function objectMode() {
  return Boolean(state.look && state.look.detection) && $("mode-objects").checked;
}

function modeSaid() {
  $("points-controls").hidden = objectMode();
  $("objects-controls").hidden = !objectMode();
  $("keys").textContent = matchMedia("(pointer: coarse)").matches ? "Tap to look from another place." :
    objectMode() ? "Arrow keys go from box to box; Enter holds and lets go." :
      "Arrow keys move by one position, with Shift by four; Enter holds and lets go.";
}

function poseSaid() {
  $("scale").value = Math.log2(state.scale);
  $("angle").value = state.angle;
  $("scale-said").textContent = `${state.scale.toFixed(2)} ×`;
  $("angle-said").textContent = `${state.angle}°`;
}

function answersSaid() {
  const { answers } = state.look;
  $("answers").hidden = !answers;
  if (!answers) return;
  $("answers").replaceChildren(made("h2", { textContent: "The network says" }), ...answers.map(({ label, chance }) =>
    made("div", { className: "answer" }, made("span", { textContent: label }), made("progress", { max: 1, value: chance, ariaLabel: label }), made("span", { textContent: `${(100 * chance).toFixed(0)} %` }))));
}

function shownObjects() {
  const least = Number($("least").value);
  return state.look.detection.objects.map((o, i) => [o, i]).filter(([o]) => o.score >= least - 1e-9).map(([, i]) => i);
}

function objectsSaid() {
  $("least-said").textContent = Number($("least").value).toFixed(2);
  if (!state.look || !state.look.detection) return;
  const { objects } = state.look.detection, shown = shownObjects();
  if (!shown.includes(state.chosen)) state.chosen = shown.length ? shown[0] : null;
  $("objects").replaceChildren(...(shown.length ? shown.map((i) =>
    made("button", { type: "button", ariaPressed: String(i === state.chosen), onclick: () => choose(i, true) },
      made("span", { textContent: objects[i].label }), made("span", { textContent: objects[i].score.toFixed(2) }))) :
    [made("p", { className: "quiet", textContent: "Nothing with that score." })]));
}

function choose(i, held) {
  state.chosen = i;
  if (held) hold(true);
  const shown = shownObjects();
  [...$("objects").querySelectorAll("button")].forEach((button, n) => { button.ariaPressed = String(shown[n] === i); });
  redraw();
}

// ---- drawing

function redraw() {
  if (drawing || !state.look) return;
  drawing = true;
  requestAnimationFrame(() => { drawing = false; draw(); });
}

/** Return the output of the chosen step whose centre is nearest to the place: index, row, column, centre. */
function output() {
  const { steps } = state.look, { scale, shift } = centres(steps, state.unit), [Ho, Wo] = steps[state.unit].above;
  const nearest = (d, n) => Math.min(n - 1, Math.max(0, Math.round((state.place[d] - shift[d]) / scale[d])));
  const row = nearest(0, Ho), column = nearest(1, Wo);
  return { q: row * Wo + column, row, column, y: row * scale[0] + shift[0], x: column * scale[1] + shift[1], scale };
}

let sheet = null;

function draw() {
  const { look: answer } = state;
  sheet = new Sheet($("stage"), answer.width, answer.height);
  sheet.picture(state.toned);
  sheet.frame(colours.line);
  if (objectMode()) drawFound(); else drawSampling();
  drawInhibition();
}

const fields = { of: null, key: "", wanted: "", values: null, cost: 0, timer: 0 };

/** Return what an output samples of every pixel; null while the pointer moves on, where that takes long to compute. */
function field(q, options) {
  const { look: answer } = state, key = [state.unit, q, [...options.groups], options.modulation].join();
  clearTimeout(fields.timer);
  if (fields.of === answer && fields.key === key) return fields.values;
  if (fields.of === answer && fields.cost > 40 && fields.wanted !== key) {
    fields.timer = setTimeout(() => { fields.wanted = key; redraw(); }, 150);
    return null;
  }
  const began = performance.now(), found = support(answer.steps, state.unit, q, options), W = answer.steps[0].below[1];
  const values = new Float64Array(answer.width * answer.height); // without what was padded below and right
  for (let y = 0; y < answer.height; y++) values.set(found.subarray(y * W, y * W + answer.width), y * answer.width);
  Object.assign(fields, { of: answer, key, values, cost: performance.now() - began });
  return values;
}

function drawSampling() {
  const { look: answer } = state, at = output(), chain = splitting();
  const options = { groups: state.groups, modulation: $("modulation").checked };
  if ($("field").checked) {
    const found = field(at.q, options);
    if (found) sheet.picture(heat(found, answer.width, answer.height, colours.accent, found.reduce((most, value) => Math.max(most, value), 1e-12)));
  }
  const found = [];
  for (let n = chain.length - 1; n >= 0; n--) {
    if (!state.levels[n]) continue;
    found[n] = trace(answer.steps, state.unit, at.q, n + 1, options);
    if ($("regular").checked) drawPoints(sheet, trace(answer.steps, state.unit, at.q, n + 1, { ...options, offsets: false }), n, colours, true);
    drawPoints(sheet, found[n], n, colours);
  }
  sheet.cross(at.y, at.x, colours.ink, colours.paper);
  state.found = found;
  state.output = at;
  const counts = found.map((f) => f && f.count).filter(Boolean);
  said(`${answer.steps[state.unit].name}, row ${at.row}, column ${at.column}: ${counts.length ? counts.join(", ") + " points" : "no points drawn"}${state.held ? ", held" : ""}`);
}

function drawFound() {
  const { detection } = state.look, shown = shownObjects();
  const show = { boxes: $("boxes").checked, rois: $("rois").checked, bins: $("bins").checked, modulation: $("weights").checked };
  drawObjects(sheet, detection, shown, state.chosen, show, colours);
  const object = state.chosen === null ? null : detection.objects[state.chosen];
  said(object ? `${object.label}, score ${object.score.toFixed(2)}; ${shown.length} found, ${detection.proposals.length} RoIs${state.held ? ", held" : ""}` : `nothing found, ${detection.proposals.length} RoIs`);
}

function drawInhibition() {
  const { responses, look: answer } = state, { width, height, cell } = answer.responses;
  const row = Math.min(height - 1, Math.max(0, Math.floor((state.place[0] + 0.5) / cell)));
  const column = Math.min(width - 1, Math.max(0, Math.floor((state.place[1] + 0.5) / cell)));
  const [radius, bias, alpha, beta] = ["radius", "bias", "alpha", "beta"].map((id) => Number($(id).value));
  for (const [id, digits] of [["radius", 0], ["bias", 1], ["alpha", 2], ["beta", 2]]) $(`${id}-said`).textContent = Number($(id).value).toFixed(digits);
  const k = Math.min(responses.length - 1, Number($("channel").value));
  $("channel-said").textContent = k;
  const here = (i, place) => inhibited((j) => responses[j][place], i, responses.length, radius, bias, alpha, beta);
  const x = Float64Array.from(responses, (channel) => channel[row * width + column]);
  const y = x.map((_, i) => here(i, row * width + column));
  drawBars($("bars"), x, y, k, colours);
  const after = Float64Array.from({ length: width * height }, (_, p) => here(k, p));
  const tallest = (map) => map.reduce((most, value) => Math.max(most, value), 1e-9);
  drawMap($("before"), responses[k], width, height, tallest(responses[k]), [row, column], colours);
  drawMap($("after"), after, width, height, tallest(after), [row, column], colours);
  $("maps-said").textContent = `Channel ${k} over the picture, before and after, each in its own range.`;
  $("lrn-said").textContent = `Channel ${k} here: ${x[k].toFixed(3)} before, ${y[k].toFixed(3)} after.`;
  state.inhibition = { x, y };
}

let spoken = 0;

/** Say where we are; screen readers get it when the pointer rests. */
function said(text) {
  clearTimeout(spoken);
  spoken = setTimeout(() => { if ($("said").textContent !== text) $("said").textContent = text; }, 120);
}

// ---- pointing

function hold(held) {
  state.held = held;
  $("stage").classList.toggle("held", held);
  redraw();
}

function point(y, x) {
  const { width, height } = state.look;
  state.place = [Math.min(height - 1, Math.max(0, y)), Math.min(width - 1, Math.max(0, x))];
  if (objectMode()) {
    // The smallest box around the pointer; outside of all, the choice stays.
    const around = shownObjects().filter((i) => {
      const [x1, y1, x2, y2] = state.look.detection.objects[i].box;
      return x >= x1 - 0.5 && x < x2 - 0.5 && y >= y1 - 0.5 && y < y2 - 0.5;
    });
    const area = (i) => { const [x1, y1, x2, y2] = state.look.detection.objects[i].box; return (x2 - x1) * (y2 - y1); };
    if (around.length) choose(around.reduce((a, b) => (area(b) < area(a) ? b : a)), false);
  }
  redraw();
}

function pointed(event) {
  const bounds = $("stage").getBoundingClientRect();
  return sheet.from(event.clientX - bounds.left - $("stage").clientLeft, event.clientY - bounds.top - $("stage").clientTop);
}

$("stage").addEventListener("pointermove", (event) => {
  if (sheet && (!state.held || event.buttons)) point(...pointed(event));
});
$("stage").addEventListener("pointerdown", (event) => {
  if (!sheet) return;
  const holds = event.pointerType === "mouse" ? !state.held : true;
  point(...pointed(event));
  hold(holds);
});
$("stage").addEventListener("keydown", (event) => {
  if (!state.look || event.ctrlKey || event.metaKey || event.altKey) return;
  const way = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (event.key === "Enter" || event.key === " ") hold(!state.held);
  else if (event.key === "Escape") hold(false);
  else if (way) {
    const far = event.shiftKey ? 4 : 1;
    if (objectMode()) {
      const shown = shownObjects(), i = shown.indexOf(state.chosen);
      if (shown.length) choose(shown[(i + (way[0] + way[1]) * far + 4 * shown.length) % shown.length], true);
    } else {
      const at = output();
      hold(true);
      point(at.y + way[0] * far * at.scale[0], at.x + way[1] * far * at.scale[1]);
    }
  } else return;
  event.preventDefault();
});

// ---- choosing

function suits(picture) {
  return picture.kind === "yours" || (picture.kind === "scene") === state.model.detects;
}

function pictures() {
  const list = state.catalog.pictures.filter((p) => suits(p) && (!frozen || frozen.looks.some((l) => l.model === state.model.id && l.picture === p.id)));
  if (!state.picture || !list.includes(state.picture)) state.picture = list[0];
  $("pictures").replaceChildren(...list.map((picture) => {
    const input = made("input", { type: "radio", name: "picture", value: picture.id, checked: picture === state.picture, onchange: () => { state.picture = picture; look(); } });
    input.setAttribute("aria-label", picture.label);
    return made("label", { className: "thumb", title: picture.label }, input, made("img", { src: picture.thumbnail, alt: "" }));
  }));
}

function chooseModel(id) {
  state.model = state.catalog.models.find((model) => model.id === id);
  $("about").textContent = state.model.about;
  pictures();
  return look();
}

async function send(file) {
  if (!file) return;
  if (file.size > MOST_BYTES) {
    trouble(`The file has ${(file.size / 2 ** 20).toFixed(0)} MB; at most ${MOST_BYTES / 2 ** 20} are taken.`);
    return;
  }
  try {
    const entry = await ask(`/api/pictures?${new URLSearchParams({ name: file.name })}`, { method: "POST", body: file });
    trouble("");
    state.catalog.pictures.unshift(entry);
    state.picture = entry;
    Object.assign(state, { scale: 1, angle: 0, place: null });
    pictures();
    await look();
  } catch (error) {
    trouble(error.message);
  }
}

$("model").addEventListener("change", (event) => chooseModel(event.target.value));
$("file").addEventListener("change", (event) => { send(event.target.files[0]); event.target.value = ""; });
$("scale").addEventListener("input", (event) => { state.scale = 2 ** Number(event.target.value); poseSaid(); look(); });
$("angle").addEventListener("input", (event) => { state.angle = Number(event.target.value); poseSaid(); look(); });
$("upright").addEventListener("click", () => { Object.assign(state, { scale: 1, angle: 0 }); poseSaid(); look(); });
for (const id of ["modulation", "regular", "field", "boxes", "rois", "bins", "weights", "radius", "bias", "alpha", "beta", "channel"]) $(id).addEventListener("input", redraw);
for (const id of ["mode-points", "mode-objects"]) $(id).addEventListener("change", () => { modeSaid(); redraw(); });
$("least").addEventListener("input", () => { objectsSaid(); redraw(); });
$("usual").addEventListener("click", () => { for (const [id, value] of Object.entries(USUAL)) $(id).value = value; redraw(); });

if (!frozen) {
  // Entering a child leaves its parent: only the outermost counts.
  let depth = 0;
  const over = (change) => { depth = change; $("drop").hidden = depth <= 0; };
  addEventListener("dragenter", (event) => { event.preventDefault(); over(depth + 1); });
  addEventListener("dragleave", () => over(depth - 1));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => { event.preventDefault(); over(0); send(event.dataTransfer.files[0]); });
}
new ResizeObserver(redraw).observe($("stage"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  colours = palette();
  if (state.image) state.toned = toned(state.image, state.look.grey, colours);
  redraw();
});

async function start() {
  try {
    state.catalog = frozen ? frozen.catalog : await ask("/api/catalog");
  } catch (error) {
    trouble(error.message);
    return;
  }
  if (frozen) {
    $("upload").hidden = true;
    $("foot").textContent = "A frozen copy: scale and rotation go to the nearest pose that it holds.";
  } else $("foot").textContent = "Pictures stay on this machine.";
  $("model").append(...state.catalog.models.map((model) => made("option", { value: model.id, textContent: model.label })));
  await chooseModel(state.catalog.models[0].id);
}
start();
