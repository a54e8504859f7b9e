/** A mask that is painted over a picture, with a pointer or with the keyboard. */

const PAINTED = "rgba(225, 29, 72, 0.62)";

export class Mask {
  /** `canvas` lies over the picture and has as many pixels. */
  constructor(canvas) {
    this.canvas = canvas;
    this.size = 16; // hundredths of the shorter side
    this.isEmpty = true;
    this.cursor = null; // of the keyboard, in pixels
    this.last = null;
    this.marks = document.createElement("canvas");
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, () => (this.last = null));
    }
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("blur", () => this.#setCursor(null));
    canvas.addEventListener("focus", () => {
      if (canvas.matches(":focus-visible")) this.#setCursor(this.#middle());
    });
  }

  start(width, height) {
    for (const each of [this.canvas, this.marks]) Object.assign(each, { width, height });
    this.clear();
  }

  clear() {
    this.#pen().clearRect(0, 0, this.marks.width, this.marks.height);
    this.isEmpty = true;
    this.last = null;
    this.#draw();
  }

  setSize(size) {
    this.size = Number(size);
    this.#draw();
  }

  /** The mask as a PNG: white is drawn again, black is kept. */
  toBlob() {
    const { width, height } = this.marks;
    const made = Object.assign(document.createElement("canvas"), { width, height });
    const pen = made.getContext("2d");
    pen.fillRect(0, 0, width, height);
    const painted = this.#pen().getImageData(0, 0, width, height);
    for (let at = 0; at < painted.data.length; at += 4) {
      painted.data.fill(painted.data[at + 3] >= 128 ? 255 : 0, at, at + 3);
      painted.data[at + 3] = 255;
    }
    pen.putImageData(painted, 0, 0);
    return new Promise((resolve) => made.toBlob(resolve, "image/png"));
  }

  get #radius() {
    return (Math.min(this.canvas.width, this.canvas.height) * this.size) / 200;
  }

  #pen = () => this.marks.getContext("2d", { willReadFrequently: true });
  #middle = () => ({ x: this.canvas.width / 2, y: this.canvas.height / 2 });

  #point(event) {
    const box = this.canvas.getBoundingClientRect();
    return {
      x: ((event.clientX - box.left) * this.canvas.width) / box.width,
      y: ((event.clientY - box.top) * this.canvas.height) / box.height,
    };
  }

  #down(event) {
    if (event.button !== 0) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.cursor = null;
    this.#paint((this.last = this.#point(event)));
  }

  #move(event) {
    if (!this.last) return;
    const point = this.#point(event);
    this.#paint(this.last, point);
    this.last = point;
  }

  #key(event) {
    const step = Math.max(1, this.#radius / (event.shiftKey ? 4 : 1));
    const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const at = this.cursor ?? this.#middle();
    if (ways[event.key]) {
      const [right, down] = ways[event.key];
      const x = Math.min(this.canvas.width, Math.max(0, at.x + right * step));
      const y = Math.min(this.canvas.height, Math.max(0, at.y + down * step));
      this.#setCursor({ x, y });
    } else if (event.key === " ") {
      this.cursor = at;
      this.#paint(at);
    } else if (event.key === "x" || event.key === "X") {
      this.cursor = at;
      this.#paint(at, at, "destination-out");
    } else {
      return;
    }
    event.preventDefault();
  }

  /** @param {GlobalCompositeOperation} operation */
  #paint(from, to = from, operation = "source-over") {
    const pen = this.#pen();
    pen.globalCompositeOperation = operation;
    pen.lineCap = "round";
    pen.lineWidth = this.#radius * 2;
    pen.beginPath();
    pen.moveTo(from.x, from.y);
    pen.lineTo(to.x + 0.01, to.y);
    pen.stroke();
    this.isEmpty = false;
    this.#draw();
  }

  #setCursor(cursor) {
    this.cursor = cursor;
    this.#draw();
  }

  #draw() {
    const pen = this.canvas.getContext("2d");
    const { width, height } = this.canvas;
    pen.globalCompositeOperation = "source-over";
    pen.clearRect(0, 0, width, height);
    pen.drawImage(this.marks, 0, 0);
    pen.globalCompositeOperation = "source-in";
    pen.fillStyle = PAINTED;
    pen.fillRect(0, 0, width, height);
    if (!this.cursor) return;
    pen.globalCompositeOperation = "source-over";
    for (const { color, size } of [{ color: "#fff", size: 3 }, { color: "#111", size: 1 }]) {
      Object.assign(pen, { strokeStyle: color, lineWidth: (size * width) / 400 });
      pen.beginPath();
      pen.arc(this.cursor.x, this.cursor.y, this.#radius, 0, 2 * Math.PI);
      pen.stroke();
    }
  }
}
