"use strict";
// The image: drawing on it, and pointing at it.

function redraw() {
  if (drawing || !state.look) return;
  drawing = true;
  requestAnimationFrame(() => { drawing = false; draw(); });
}

/** Return the output of the chosen step whose centre is nearest to the pointer: index, row, column, centre. */
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

/** Return the total weight with which an output samples each pixel; null while the pointer moves, if that is slow to compute. */
function field(q, options) {
  const { look: answer } = state, key = [state.unit, q, [...options.groups], options.modulation].join();
  clearTimeout(fields.timer);
  if (fields.of === answer && fields.key === key) return fields.values;
  if (fields.of === answer && fields.cost > 40 && fields.wanted !== key) {
    fields.timer = setTimeout(() => { fields.wanted = key; redraw(); }, 150);
    return null;
  }
  const began = performance.now(), found = support(answer.steps, state.unit, q, options), W = answer.steps[0].below[1];
  const values = new Float64Array(answer.width * answer.height); // without the padding at the bottom and right
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
  said(`${answer.steps[state.unit].name}, row ${at.row}, column ${at.column}: ${counts.length ? counts.join(", ") + " paths" : "no paths drawn"}${state.held ? ", held" : ""}`);
}

function drawFound() {
  const { detection } = state.look, shown = shownObjects();
  const show = { boxes: $("boxes").checked, rois: $("rois").checked, bins: $("bins").checked, modulation: $("weights").checked };
  drawObjects(sheet, detection, shown, state.chosen, show, colours);
  const object = state.chosen === null ? null : detection.objects[state.chosen];
  said(object ? `${object.label}, score ${object.score.toFixed(2)}; ${shown.length} detections, ${detection.proposals.length} RoIs${state.held ? ", held" : ""}` : `no detections, ${detection.proposals.length} RoIs`);
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
  $("maps-said").textContent = `Channel ${k} over the image, before and after, each in its own range.`;
  $("lrn-said").textContent = `Channel ${k} here: ${x[k].toFixed(3)} before, ${y[k].toFixed(3)} after.`;
  state.inhibition = { x, y };
}

let spoken = 0;

/** Describe the current position, for screen readers too, when the pointer rests. */
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
    // Choose the smallest box around the pointer; outside of all boxes the choice stays.
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
