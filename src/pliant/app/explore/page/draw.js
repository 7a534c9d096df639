"use strict";
// Everything that draws on a canvas. Pixel (y, x) of an image has its centre at (y, x), as in pliant.show.

/** Return the colours of the style sheet, light or dark. */
function palette() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim();
  return { paper: read("--paper"), ink: read("--ink"), line: read("--line"), quiet: read("--quiet"), accent: read("--accent"), dark: read("--dark") === "1" };
}

/** Set the resolution of a canvas to that of the screen and return its context in CSS pixels. */
function fitted(canvas, width, height) {
  const dense = Math.min(3, window.devicePixelRatio || 1);
  const W = Math.round(width * dense), H = Math.round(height * dense);
  if (canvas.width !== W || canvas.height !== H) {
    canvas.width = W;
    canvas.height = H;
  }
  const context = canvas.getContext("2d");
  context.setTransform(W / width, 0, 0, H / height, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

/** Return an image with lower contrast, for points on top; grey images take the page's ink and paper colours. */
function toned(image, grey, colours) {
  const canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height), data = pixels.data;
  const [from, to] = colours.dark ? [30, 150] : [255, 130];
  const [share, ground] = colours.dark ? [0.62, 8] : [0.62, 94];
  for (let i = 0; i < data.length; i += 4) {
    const light = 0.3 * data[i] + 0.59 * data[i + 1] + 0.11 * data[i + 2];
    for (let c = 0; c < 3; c++) {
      data[i + c] = grey ? from + (to - from) * data[i + c] / 255 : (0.6 * data[i + c] + 0.4 * light) * share + ground;
    }
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

/** Return a map of numbers as an image of one colour: the larger, the more opaque. */
function heat(values, width, height, colour, top, { power = 0.5, most = 0.55 } = {}) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  context.fillStyle = colour;
  context.fillRect(0, 0, width, height);
  const pixels = context.getImageData(0, 0, width, height);
  for (let i = 0; i < values.length; i++) pixels.data[4 * i + 3] = 255 * most * Math.pow(Math.min(1, Math.max(0, values[i] / top)), power);
  context.putImageData(pixels, 0, 0);
  return canvas;
}

/** An image in a canvas with a margin: `at` maps pixels of the image to the canvas, `from` maps back. */
class Sheet {
  constructor(canvas, width, height) {
    this.margin = 0.06 * Math.max(width, height);
    const full = canvas.clientWidth, unit = full / (width + 2 * this.margin);
    Object.assign(this, { width, height, unit });
    this.context = fitted(canvas, full, (height + 2 * this.margin) * unit);
  }
  at(y, x) {
    return [(x + 0.5 + this.margin) * this.unit, (y + 0.5 + this.margin) * this.unit];
  }
  from(px, py) {
    return [py / this.unit - this.margin - 0.5, px / this.unit - this.margin - 0.5];
  }
  picture(image) {
    const { context, unit, margin, width, height } = this;
    context.imageSmoothingEnabled = false;
    context.drawImage(image, margin * unit, margin * unit, width * unit, height * unit);
  }
  frame(colour) {
    const { context, unit, margin, width, height } = this;
    context.strokeStyle = colour;
    context.lineWidth = 1;
    context.strokeRect(margin * unit - 0.5, margin * unit - 0.5, width * unit + 1, height * unit + 1);
  }
  dot(y, x, radius, colour, { alpha = 1, rim = null, hollow = false } = {}) {
    const context = this.context, [px, py] = this.at(y, x);
    context.globalAlpha = alpha;
    context.beginPath();
    context.arc(px, py, radius, 0, 2 * Math.PI);
    if (hollow) {
      context.lineWidth = 1.4;
      context.strokeStyle = colour;
      context.stroke();
    } else {
      context.fillStyle = colour;
      context.fill();
      if (rim) {
        context.lineWidth = 1;
        context.strokeStyle = rim;
        context.stroke();
      }
    }
    context.globalAlpha = 1;
  }
  line(y1, x1, y2, x2, colour, width = 1, alpha = 1) {
    const context = this.context;
    context.globalAlpha = alpha;
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.beginPath();
    context.moveTo(...this.at(y1, x1));
    context.lineTo(...this.at(y2, x2));
    context.stroke();
    context.globalAlpha = 1;
  }
  cross(y, x, colour, rim) {
    const context = this.context, [px, py] = this.at(y, x);
    for (const [stroke, width] of [[rim, 5], [colour, 2]]) {
      context.strokeStyle = stroke;
      context.lineWidth = width;
      context.lineCap = "round";
      context.beginPath();
      context.moveTo(px - 7, py);
      context.lineTo(px + 7, py);
      context.moveTo(px, py - 7);
      context.lineTo(px, py + 7);
      context.stroke();
    }
  }
  /** Draw a box given by edges, x1 y1 x2 y2: the edge 0 is the left edge of pixel 0. */
  box([x1, y1, x2, y2], colour, { width = 2, alpha = 1, dash = [], rim = null } = {}) {
    const context = this.context, [left, top] = this.at(y1 - 0.5, x1 - 0.5), [right, bottom] = this.at(y2 - 0.5, x2 - 0.5);
    context.globalAlpha = alpha;
    context.setLineDash(dash);
    if (rim) {
      context.strokeStyle = rim;
      context.lineWidth = width + 2;
      context.strokeRect(left, top, right - left, bottom - top);
    }
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.strokeRect(left, top, right - left, bottom - top);
    context.setLineDash([]);
    context.globalAlpha = 1;
  }
  /** Write the label of a box at the corner where it covers least of the labels in `taken`, and add it to `taken`. */
  label([x1, y1, x2, y2], text, taken) {
    const context = this.context, { clientWidth: W, clientHeight: H } = context.canvas;
    context.font = "600 12px system-ui, sans-serif";
    const [left, top] = this.at(y1 - 0.5, x1 - 0.5), [right, bottom] = this.at(y2 - 0.5, x2 - 0.5);
    const width = context.measureText(text).width + 10, height = 19;
    const corners = [[left - 1, top - height], [left - 1, bottom], [right + 1 - width, top - height], [right + 1 - width, bottom], [left - 1, top], [left - 1, bottom - height]]
      .map(([x, y]) => [Math.max(0, Math.min(x, W - width)), Math.max(0, Math.min(y, H - height))]);
    const shared = ([x, y]) => taken.reduce((sum, [a, b, c]) => sum + Math.max(0, Math.min(x + width, a + c) - Math.max(x, a)) * Math.max(0, height - Math.abs(y - b)), 0);
    const [x, y] = corners.reduce((best, corner) => (shared(corner) < shared(best) ? corner : best));
    taken.push([x, y, width]);
    context.fillStyle = EDGE;
    context.fillRect(x, y, width, height);
    context.fillStyle = "#FFFFFF";
    context.textBaseline = "middle";
    context.fillText(text, x + 5, y + 10);
  }
}

// The points of one, two and three convolutions: radius, rim, opacity at the smallest and at the largest weight.
const LEVELS = [
  { radius: 5.5, rim: true, least: 0.4, most: 1 },
  { radius: 3.2, rim: true, least: 0.25, most: 0.9 },
  { radius: 1.9, rim: false, least: 0.1, most: 0.65 },
];

/** Draw traced points: the smaller the weight of a path, the more transparent; points out of bounds are grey rings. */
function drawPoints(sheet, found, level, colours, regular = false) {
  const style = LEVELS[level];
  const size = style.radius * Math.min(1, Math.max(0.55, sheet.context.canvas.clientWidth / 640));
  const top = found.weights.reduce((most, value) => Math.max(most, value), 0);
  for (let p = 0; p < found.count; p++) {
    const y = found.points[2 * p], x = found.points[2 * p + 1];
    if (regular) sheet.dot(y, x, level === 2 ? 1 : size * 0.9, colours.ink, { hollow: level < 2, alpha: level === 2 ? 0.35 : 0.75 });
    else if (!(found.weights[p] > 0)) sheet.dot(y, x, size * 0.8, colours.quiet, { hollow: true, alpha: level === 2 ? 0.4 : 0.8 });
    else sheet.dot(y, x, size, colours.accent, { alpha: style.least + (style.most - style.least) * Math.sqrt(found.weights[p] / top), rim: style.rim ? colours.paper : null });
  }
}

const EDGE = "#222222"; // beside the line of a box and under its name, as in pliant.show.boxes
const MOST_LABELS = 12; // labelled boxes: more would cover the image with text

/** Draw detections; `chosen` is the one of `shown` whose bins are drawn too. */
function drawObjects(sheet, detection, shown, chosen, show, colours) {
  const faint = Math.max(0.08, Math.min(0.5, 40 / detection.proposals.length));
  if (show.rois) for (const roi of detection.proposals) sheet.box(roi, colours.ink, { width: 1, alpha: faint, dash: [3, 3] });
  const object = chosen === null ? null : detection.objects[chosen];
  const others = shown.filter((i) => i !== chosen);
  if (show.boxes) for (const i of [...others].reverse()) sheet.box(detection.objects[i].box, detection.objects[i].colour, { rim: EDGE });
  if (object && show.bins && detection.bins) {
    const [x1, y1, x2, y2] = object.roi, P = detection.side, first = chosen * P * P;
    sheet.box(object.roi, colours.ink, { width: 1, dash: [5, 4], alpha: 0.9 });
    let top = 0;
    if (detection.weights) for (let b = 0; b < P * P; b++) top = Math.max(top, detection.weights[first + b]);
    for (const moved of [false, true]) {
      for (let b = 0; b < P * P; b++) {
        const y = y1 + (Math.floor(b / P) + 0.5) / P * (y2 - y1) - 0.5, x = x1 + (b % P + 0.5) / P * (x2 - x1) - 0.5;
        const dy = detection.moves[2 * (first + b)], dx = detection.moves[2 * (first + b) + 1];
        const weight = detection.weights && show.modulation ? detection.weights[first + b] / top : 1;
        if (!moved) {
          sheet.dot(y, x, 2.2, colours.ink, { alpha: 0.7, hollow: true });
          sheet.line(y, x, y + dy, x + dx, colours.accent, 1, 0.7);
        } else sheet.dot(y + dy, x + dx, 3.6, colours.accent, { alpha: 0.15 + 0.85 * Math.sqrt(weight), rim: colours.paper });
      }
    }
  }
  if (!show.boxes) return;
  if (object) sheet.box(object.box, colours.accent, { width: 3, rim: EDGE });
  const named = [...(object ? [chosen] : []), ...(shown.length <= MOST_LABELS ? others : [])], taken = [];
  for (const i of named) {
    const { box, label, score } = detection.objects[i];
    sheet.label(box, `${label} ${score.toFixed(2)}`, taken);
  }
}

/** Draw the responses of all channels before (quiet) and after (accent). */
function drawBars(canvas, before, after, channel, colours) {
  const W = canvas.clientWidth, H = canvas.clientHeight, context = fitted(canvas, W, H);
  const n = before.length, step = W / n, top = Math.max(1e-9, ...before, ...after);
  context.fillStyle = colours.quiet;
  for (let i = 0; i < n; i++) {
    const tall = (H - 8) * before[i] / top, low = (H - 8) * after[i] / top;
    context.globalAlpha = 0.35;
    context.fillStyle = colours.quiet;
    context.fillRect(i * step + step * 0.12, H - 1 - tall, step * 0.76, tall);
    context.globalAlpha = i === channel ? 1 : 0.75;
    context.fillStyle = colours.accent;
    context.fillRect(i * step + step * 0.28, H - 1 - low, step * 0.44, low);
  }
  context.globalAlpha = 1;
  context.fillStyle = colours.ink;
  context.fillRect(0, H - 1, W, 1);
  context.fillRect(channel * step + step * 0.12, H - 3, step * 0.76, 3);
}

/** Draw the map of one channel and a ring at the position of the pointer. */
function drawMap(canvas, values, width, height, top, place, colours) {
  const W = canvas.clientWidth, H = W * height / width, context = fitted(canvas, W, H);
  context.imageSmoothingEnabled = false;
  context.drawImage(heat(values, width, height, colours.ink, top, { power: 1, most: 0.92 }), 0, 0, W, H);
  context.strokeStyle = colours.accent;
  context.lineWidth = 2;
  context.beginPath();
  context.arc((place[1] + 0.5) * W / width, (place[0] + 0.5) * H / height, 5, 0, 2 * Math.PI);
  context.stroke();
}
