/** A picture with the boxes of an answer drawn over it. */

import { element } from "./dom.js";

const NUM_COLORS = 6;

/** `boxes`: `{label, box: [left, top, right, bottom]}` in pixels of the picture as it is shown. */
export function boxedPicture(blob, boxes) {
  const image = element("img", { src: URL.createObjectURL(blob), alt: "The picture with boxes" });
  const frame = element("div", { className: "boxed" }, image);
  image.addEventListener("load", () => {
    const { naturalWidth: width, naturalHeight: height } = image;
    frame.style.width = `${Math.min(18, (22 * width) / height)}rem`;
    boxes.forEach(({ label, box: [left, top, right, bottom] }, index) => {
      const drawn = element("div", {
        className: "box", "aria-hidden": "true", "data-color": String(index % NUM_COLORS),
      });
      if (label) drawn.append(element("span", {}, label));
      if (top < height / 8) drawn.classList.add("inside"); // no room for the label above
      if (left > width / 2) drawn.classList.add("right");
      Object.assign(drawn.style, {
        left: `${(100 * left) / width}%`,
        top: `${(100 * top) / height}%`,
        width: `${(100 * (right - left)) / width}%`,
        height: `${(100 * (bottom - top)) / height}%`,
      });
      frame.append(drawn);
    });
  });
  const texts = boxes.map(({ label, box }) => `${label || "unnamed"} [${box.join(", ")}]`);
  const caption = element("figcaption", { className: "facts" }, texts.join(" · "));
  return element("figure", {}, frame, caption);
}
