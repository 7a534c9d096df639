"use strict";
// The controls that depend on the network, and the texts about its answer.

const MOST_POINTS = 6000; // of one convolution, traced through those above it

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

/** Return the convolutions whose taps split the paths of the chosen unit, topmost first: three, or fewer if there are too many points. */
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
      made("i", { className: `dot dot-${n + 1}` }), made("span", { textContent: n ? `… through ${step.name}` : step.name }), made("small", { textContent: `${count} paths` }));
  }));
}

function objectMode() {
  return Boolean(state.look && state.look.detection) && $("mode-objects").checked;
}

function modeSaid() {
  $("points-controls").hidden = objectMode();
  $("objects-controls").hidden = !objectMode();
  $("keys").textContent = matchMedia("(pointer: coarse)").matches ? "Tap to choose another position." :
    objectMode() ? "Arrow keys go from box to box; Enter holds or releases." :
      "Arrow keys move by one position, with Shift by four; Enter holds or releases.";
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
  $("answers").replaceChildren(made("h2", { textContent: "Most likely classes" }), ...answers.map(({ label, chance }) =>
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
    [made("p", { className: "quiet", textContent: nothingFound(objects) })]));
}

/** Say why no detection is listed, and what to do. */
function nothingFound(objects) {
  if (!objects.length) return "The network finds nothing in this image, however low the score.";
  const best = Math.max(...objects.map((o) => o.score));
  return `No detection has this score; the best one has ${best.toFixed(2)}. Move the slider “Score ≥” to the left.`;
}

function choose(i, held) {
  state.chosen = i;
  if (held) hold(true);
  const shown = shownObjects();
  [...$("objects").querySelectorAll("button")].forEach((button, n) => { button.ariaPressed = String(shown[n] === i); });
  redraw();
}
