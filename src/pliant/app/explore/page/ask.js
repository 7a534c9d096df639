"use strict";
// The current choice, and the server's answers to it. A frozen copy holds all answers itself.

const $ = (id) => document.getElementById(id);
const frozen = $("frozen") ? JSON.parse($("frozen").textContent) : null;

const state = {
  catalog: null, model: null, picture: null, scale: 1, angle: 0,
  look: null, image: null, toned: null, responses: null,
  unit: 0, // index of the step whose output is traced
  place: null, // [y, x] of the pointer in the image
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

/** Return the server's answer, or throw an error with the server's sentence. */
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

/** Return the answer of a frozen copy whose pose is nearest to the requested one, and set the pose to that one. */
function thawed() {
  const far = (l) => Math.abs(Math.log2(l.scale / state.scale)) + Math.abs(l.angle - state.angle) / 60;
  const there = frozen.looks.filter((l) => l.model === state.model.id && l.picture === state.picture.id);
  const best = there.reduce((a, b) => (far(b) < far(a) ? b : a));
  Object.assign(state, { scale: best.scale, angle: best.angle });
  return structuredClone(best.look);
}

/** Request the network's answer to the current choice; while a request is pending, only the last choice counts. */
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

/** Show an answer. */
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

/** Return the channel with the strongest responses over the whole image: one that shows something. */
function strongest() {
  const energy = state.responses.map((channel) => channel.reduce((sum, value) => sum + value * value, 0));
  return energy.indexOf(Math.max(...energy));
}
