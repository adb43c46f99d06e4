// Pictures made of squares, one beside another, under one cursor: look at numbers, pick a square, or paint some.
// props.value: {mode: "look" | "pick" | "paint", rows, columns, at, keep, painted, maps: [{title, alt, src, values, unit}]}
// `at` is the picked square; `keep` the part from the top that is kept; `painted` a string of 0 and 1, one for each square.
const root = element.querySelector(".maps");
const readout = document.createElement("p");
readout.className = "readout";
readout.setAttribute("aria-live", "polite");
const row = document.createElement("div");
row.className = "boards";
root.append(row, readout);

let boards = [];
let cursor = null;
let byKeys = false; // they moved the cursor last: a pointer that leaves, as it does where the page moves, leaves it there
let brush = null;   // "1" or "0" while the pointer is down
let sent = null;    // the value that we set ourselves

const value = () => props.value || {};
const count = () => value().rows * value().columns;

function show() {
  if (props.value === sent) return paint();
  const maps = value().maps || [];
  root.hidden = !maps.length;
  if (boards.length !== maps.length || boards.some((board, i) => board.title !== maps[i].title)) build(maps);
  boards.forEach((board, i) => {
    if (board.image.src !== maps[i].src) board.image.src = maps[i].src;
    board.area.setAttribute("aria-label", maps[i].alt + " " + help());
    board.canvas.width = value().columns * 16;
    board.canvas.height = value().rows * 16;
    board.area.style.aspectRatio = value().columns + " / " + value().rows;
  });
  if (cursor === null || cursor >= count()) cursor = resting();
  paint();
}

function resting() {
  return value().mode === "pick" ? value().at ?? null : null;
}

function help() {
  const keys = "Arrow keys move the cursor";
  return { pick: keys + ", Enter picks a pixel.", paint: keys + ", Space paints." }[value().mode] || keys + ".";
}

function build(maps) {
  row.replaceChildren();
  boards = maps.map((map) => {
    const figure = document.createElement("figure");
    const title = document.createElement("figcaption");
    title.textContent = map.title;
    const area = document.createElement("div");
    area.className = "board " + value().mode;
    area.tabIndex = 0;
    area.setAttribute("role", "application");
    const image = new Image();
    image.alt = "";
    image.draggable = false;
    const canvas = document.createElement("canvas");
    area.append(image, canvas);
    figure.append(title, area);
    row.append(figure);
    area.addEventListener("pointermove", (event) => move(square(event, area), event));
    area.addEventListener("pointerdown", (event) => press(square(event, area), event, area));
    area.addEventListener("pointerleave", () => { if (brush === null && !byKeys) { cursor = resting(); paint(); } });
    area.addEventListener("keydown", key);
    return { title: map.title, area, image, canvas };
  });
}

function square(event, area) {
  const box = area.getBoundingClientRect();
  const at = (part, size, length) => Math.min(length - 1, Math.max(0, Math.floor((part / size) * length)));
  const column = at(event.clientX - box.left, box.width, value().columns);
  return at(event.clientY - box.top, box.height, value().rows) * value().columns + column;
}

function move(index, event) {
  if (brush !== null) line(cursor, index);
  point(index);
  paint();
}

function point(index) {
  cursor = index;
  byKeys = false;
}

function press(index, event, area) {
  point(index);
  area.focus({ preventScroll: true });
  if (value().mode === "pick") pick();
  if (value().mode === "paint") {
    event.preventDefault();
    area.setPointerCapture(event.pointerId);
    brush = event.button === 2 || event.shiftKey || is(index) ? "0" : "1";
    line(index, index);
    const end = () => { brush = null; commit(); };
    area.addEventListener("pointerup", end, { once: true });
    area.addEventListener("pointercancel", end, { once: true });
  }
  paint();
}

function key(event) {
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -value().columns, ArrowDown: value().columns };
  if (event.key in steps) {
    const next = cursor === null ? 0 : cursor + steps[event.key];
    const wraps = Math.abs(steps[event.key]) === 1 && cursor !== null
      && Math.floor(next / value().columns) !== Math.floor(cursor / value().columns);
    if (next >= 0 && next < count() && !wraps) cursor = next;
  } else if ((event.key === "Enter" || event.key === " ") && cursor !== null) {
    if (value().mode === "pick") pick();
    if (value().mode === "paint") {
      brush = is(cursor) ? "0" : "1";
      line(cursor, cursor);
      brush = null;
      commit();
    }
  } else return;
  byKeys = true;
  event.preventDefault();
  paint();
}

function pick() {
  set({ at: cursor });
  trigger("select");
}

// ---- painting: what is under the brush lives in `strokes` until the pointer is lifted ----
let strokes = null;

function is(index) {
  const { painted, keep } = value();
  if (strokes) return strokes[index] === "1";
  return painted ? painted[index] === "1" : keep != null && index >= Math.round(keep * count());
}

function line(from, to) {
  strokes = strokes || Array.from({ length: count() }, (_, i) => (value().painted?.[i] === "1" ? "1" : "0"));
  const columns = value().columns, wide = Math.max(0, Math.round((value().brush || 3) - 1) / 2);
  const [x0, y0, x1, y1] = [from % columns, Math.floor(from / columns), to % columns, Math.floor(to / columns)];
  const steps = Math.max(Math.abs(x1 - x0), Math.abs(y1 - y0), 1);
  for (let step = 0; step <= steps; step++) {
    const x = Math.round(x0 + ((x1 - x0) * step) / steps), y = Math.round(y0 + ((y1 - y0) * step) / steps);
    for (let dy = -wide; dy <= wide; dy++)
      for (let dx = -wide; dx <= wide; dx++)
        if (x + dx >= 0 && x + dx < columns && y + dy >= 0 && y + dy < value().rows)
          strokes[(y + dy) * columns + x + dx] = brush;
  }
}

function commit() {
  if (!strokes) return;
  const painted = strokes.join("");
  strokes = null;
  set({ painted });
  trigger("change");
}

function set(part) {
  sent = { ...value(), ...part };
  props.value = sent;
  paint();
}

// ---- what lies over the pictures ----
function paint() {
  for (const { canvas } of boards) {
    const pen = canvas.getContext("2d"), size = 16, columns = value().columns;
    pen.clearRect(0, 0, canvas.width, canvas.height);
    const hidden = strokes || value().painted || value().keep != null;
    if (hidden) {
      for (let i = 0; i < count(); i++) {
        if (!is(i)) continue;
        const x = (i % columns) * size, y = Math.floor(i / columns) * size;
        pen.fillStyle = "rgba(200, 200, 200, 0.86)";
        pen.fillRect(x, y, size, size);
        pen.fillStyle = "rgba(110, 110, 110, 0.5)";
        pen.fillRect(x, y, size / 2, size / 2);
        pen.fillRect(x + size / 2, y + size / 2, size / 2, size / 2);
      }
    }
    for (const [index, color] of [[value().at, "#f59e0b"], [cursor, "#ffffff"]]) {
      if (index == null) continue;
      const x = (index % columns) * size, y = Math.floor(index / columns) * size;
      pen.lineWidth = 6; pen.strokeStyle = "#000000"; pen.strokeRect(x, y, size, size);
      pen.lineWidth = 3; pen.strokeStyle = color; pen.strokeRect(x, y, size, size);
    }
  }
  readout.textContent = tell();
}

function tell() {
  if (cursor === null) return value().hint || "";
  const columns = value().columns;
  const place = `row ${Math.floor(cursor / columns) + 1}, column ${(cursor % columns) + 1}`;
  const told = (value().maps || []).filter((map) => map.values)
    .map((map) => `${map.title} ${Number(map.values[cursor]).toFixed(2)} ${map.unit || ""}`.trim());
  if (value().mode === "paint") told.push(is(cursor) ? "is painted anew" : "is kept");
  return [place, ...told].join(" · ");
}

watch("value", show);
show();
