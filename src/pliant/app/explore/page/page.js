"use strict";
// Choosing networks and images, the controls that do not depend on the network, and the start.

const MOST_BYTES = 20 * 2 ** 20;
const USUAL = { radius: 5, bias: 1, alpha: 1, beta: 0.5 };

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
    trouble(`The file has ${(file.size / 2 ** 20).toFixed(0)} MB; at most ${MOST_BYTES / 2 ** 20} are accepted.`);
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
  // Entering a child element leaves its parent: count the depth.
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
    $("foot").textContent = "A frozen copy: scale and rotation snap to the nearest pose in it.";
  } else $("foot").textContent = "Images stay on this machine.";
  $("model").append(...state.catalog.models.map((model) => made("option", { value: model.id, textContent: model.label })));
  await chooseModel(state.catalog.models[0].id);
}
start();
