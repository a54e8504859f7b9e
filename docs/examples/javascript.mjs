// Draws a picture step by step and streams its description, with fetch alone: Node.js 18 and later, and browsers.
// In a page of another origin the server needs PREDICTORS_SERVER_ALLOWED_ORIGINS=https://that.page
const url = globalThis.process?.env.PREDICTORS_URL ?? "http://127.0.0.1:8080";

/**
 * The JSON of each server-sent event, as it comes.
 * @param {string} path
 * @param {object} body
 */
async function* events(path, body) {
  const answer = await fetch(url + path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  if (!answer.ok || !answer.body) throw new Error(`${answer.status}: ${(await answer.json()).error.message}`);
  let text = "";
  for await (const piece of answer.body.pipeThrough(new TextDecoderStream())) {
    text += piece;
    const lines = text.split("\n");
    text = lines.pop() ?? "";
    for (const line of lines)
      if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
  }
}

let picture = "";
const drawing = { model: "flux", prompt: "a large red circle on a white background", seed: 7 };
for await (const event of events("/v1/images/generations", { ...drawing, stream: true, partial_images: 2 })) {
  console.log(event.type);
  picture = `data:image/png;base64,${event.b64_json}`; // in a page: img.src = picture
}

let words = "";
const content = [
  { type: "image_url", image_url: { url: picture } },
  { type: "text", text: "Describe this picture." },
];
for await (const chunk of events("/v1/chat/completions", {
  model: "qwen-vl",
  messages: [{ role: "user", content }],
  stream: true,
}))
  words += chunk.choices[0]?.delta.content ?? "";
console.log(words);
