/** Elements of the page by id, and new ones. Text is always set as text, never parsed as HTML. */

export const byId = (id) => document.getElementById(id);

/** A new element with properties (`data-...` and `aria-...` become attributes) and children. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (/^(data|aria)-|^role$/.test(name)) made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

export function show(target, isShown) {
  target.hidden = !isShown;
}

/** Fill a `<select>` with texts; `chosen` is selected. */
export function fillSelect(select, texts, chosen) {
  select.replaceChildren(...texts.map((text) => new Option(text, text)));
  if (texts.includes(chosen)) select.value = chosen;
}

/** The number in a field, or undefined where it is empty. Throws where it is no number. */
export function numberIn(id) {
  const field = byId(id);
  if (field.validity.badInput) throw new Error(`${labelOf(field)} is not a number`);
  return field.value.trim() === "" ? undefined : Number(field.value);
}

const labelOf = (field) => field.labels?.[0]?.textContent.trim() || field.id;

/** What an error says: the server's own words, its field, its wait and its status. */
export function showError(box, error) {
  const facts = [];
  if (error.param) facts.push(`Field: ${error.param}`);
  if (error.retryAfter) facts.push(`Try again in ${error.retryAfter} s`);
  if (error.status) facts.push([`HTTP ${error.status}`, error.code].filter(Boolean).join(" "));
  if (error.requestId) facts.push(`Request ${error.requestId}`);
  box.replaceChildren(
    element("p", {}, error.message),
    ...(facts.length ? [element("p", { className: "facts" }, facts.join(" · "))] : []),
  );
  show(box, true);
}

export function hideError(box) {
  box.replaceChildren();
  show(box, false);
}

/** Call `take(file)` for every picture that is dropped on or pasted into `target`. */
export function takePictures(target, take) {
  const isPicture = (file) => file.type.startsWith("image/");
  for (const name of ["dragenter", "dragover"]) {
    target.addEventListener(name, (event) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      target.classList.add("over");
    });
  }
  target.addEventListener("dragleave", () => target.classList.remove("over"));
  target.addEventListener("drop", (event) => {
    target.classList.remove("over");
    const found = [...event.dataTransfer.files].filter(isPicture);
    if (!found.length) return;
    event.preventDefault();
    found.forEach(take);
  });
  target.addEventListener("paste", (event) => {
    const found = [...event.clipboardData.files].filter(isPicture);
    if (!found.length) return;
    event.preventDefault();
    found.forEach(take);
  });
}

/** Checkboxes with a scale for each adapter that is served. */
export function adapterFields(fieldset, names) {
  show(fieldset, names.length > 0);
  fieldset.replaceChildren(element("legend", {}, "Adapters"));
  for (const name of names) {
    const use = element("input", { type: "checkbox", value: name });
    const scale = element("input", {
      type: "number", value: "1", min: "-4", max: "4", step: "0.1",
      "aria-label": `Scale of ${name}`,
    });
    fieldset.append(element("div", {}, element("label", {}, use, ` ${name}`), scale));
  }
}

/** The adapters that are chosen, as the field `loras` of a request, or undefined. */
export function chosenAdapters(fieldset) {
  const rows = [...fieldset.querySelectorAll("div")];
  const chosen = rows
    .map((row) => row.querySelectorAll("input"))
    .filter(([use]) => use.checked)
    .map(([use, scale]) => ({ name: use.value, scale: Number(scale.value) }));
  return chosen.length ? chosen : undefined;
}
