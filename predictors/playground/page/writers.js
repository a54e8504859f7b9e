/** Writes a request as curl, Python and JavaScript. Pictures are files beside the program. */

const OPENAI = new Set([
  "model", "prompt", "size", "output_format", "messages", "max_tokens", "temperature", "seed",
  "response_format",
]);
const isPicture = (path) => path.startsWith("v1/images/");
/** `seed` is a field of OpenAI's chats, not of its pictures. */
const isOpenAi = (name, path) => OPENAI.has(name) && !(name === "seed" && isPicture(path));
const isFile = (value) => typeof value === "object" && value !== null && "file" in value;
const fileName = (body) => `picture.${body.output_format ?? "png"}`;

export const writers = { curl, python, javascript };

// -- curl -----------------------------------------------------------------------------------------
const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

function curl({ base, path, body, forms, hasKey }) {
  const lines = [`curl -s ${quoted(base + path)}`];
  if (hasKey) lines.push(`-H "Authorization: Bearer $API_KEY"`);
  const save = isPicture(path)
    ? ` | jq -r '.data[0].b64_json' | base64 -d > ${fileName(body)}`
    : ` | jq -r '.choices[0].message.content'`;
  if (Object.keys(forms).length) {
    for (const [name, value] of Object.entries(body)) {
      const text = typeof value === "object" ? JSON.stringify(value) : String(value);
      lines.push(`--form-string ${quoted(`${name}=${text}`)}`);
    }
    for (const [name, file] of Object.entries(forms)) lines.push(`-F ${name}=@${file}`);
    return lines.join(" \\\n  ") + save;
  }
  lines.push("-H 'Content-Type: application/json'");
  const files = [];
  const json = JSON.stringify(body, (_, value) => {
    if (!isFile(value)) return value;
    files.push(value);
    return `\u0000${files.length - 1}\u0000`;
  }, 2);
  if (!files.length) return `${lines.join(" \\\n  ")} \\\n  -d ${quoted(json)}${save}`;
  // the shell puts the pictures in: what it would read itself is escaped
  const text = json
    .replace(/[\\$`]/g, "\\$&")
    .replace(/\\\\u0000(\d+)\\\\u0000/g, (_, index) => {
      const { file, type } = files[index];
      return `data:${type};base64,$(base64 < ${file} | tr -d '\\n')`;
    });
  return `${lines.join(" \\\n  ")} \\\n  -d @- <<END${save}\n${text}\nEND`;
}

// -- Python ---------------------------------------------------------------------------------------
function toPython(value, indent = "") {
  const deeper = `${indent}    `;
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (isFile(value)) return `data_url(${JSON.stringify(value.file)}, ${JSON.stringify(value.type)})`;
  if (typeof value !== "object") return JSON.stringify(value);
  const items = Array.isArray(value)
    ? value.map((each) => toPython(each, deeper))
    : Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${toPython(each, deeper)}`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  if (!items.length) return open + close;
  return `${open}\n${items.map((each) => `${deeper}${each},\n`).join("")}${indent}${close}`;
}

function python({ base, path, body, forms, hasKey }) {
  const own = Object.entries(body).filter(([name]) => isOpenAi(name, path));
  const more = Object.entries(body).filter(([name]) => !isOpenAi(name, path));
  const texts = own.map(([name, value]) => `    ${name}=${toPython(value, "    ")},\n`);
  for (const [name, file] of Object.entries(forms)) {
    texts.push(`    ${name}=open(${JSON.stringify(file)}, "rb"),\n`);
  }
  if (more.length) texts.push(`    extra_body=${toPython(Object.fromEntries(more), "    ")},\n`);
  const hasFiles = JSON.stringify(body).includes('{"file":');
  const imports = ["import base64"].slice(isPicture(path) || hasFiles ? 0 : 1);
  if (hasKey) imports.push("import os");
  const key = hasKey ? `os.environ["API_KEY"]` : `"none"`;
  const client = `client = OpenAI(base_url=${JSON.stringify(`${base}v1`)}, api_key=${key})`;
  const read = hasFiles
    ? `def data_url(path, media_type):
    with open(path, "rb") as file:
        return f"data:{media_type};base64,{base64.b64encode(file.read()).decode()}"\n\n\n` : "";
  const method = {
    "v1/images/generations": "images.generate", "v1/images/edits": "images.edit",
    "v1/chat/completions": "chat.completions.create",
  }[path];
  const end = isPicture(path)
    ? `with open(${JSON.stringify(fileName(body))}, "wb") as file:
    file.write(base64.b64decode(answer.data[0].b64_json))`
    : "print(answer.choices[0].message.content)";
  return `${imports.join("\n")}${imports.length ? "\n\n" : ""}from openai import OpenAI\n\n\n${read}${
    client}\nanswer = client.${method}(\n${texts.join("")})\n${end}\n`;
}

// -- JavaScript -----------------------------------------------------------------------------------
function javascript({ base, path, body, forms, hasKey }) {
  const files = [];
  const marked = JSON.stringify(body, (_, value) => {
    if (!isFile(value)) return value;
    files.push(value);
    return `\u0000${files.length - 1}\u0000`;
  }, 2);
  const json = marked.replace(/"\\u0000(\d+)\\u0000"/g, (_, index) =>
    `await dataUrl(${JSON.stringify(files[index].file)}, ${JSON.stringify(files[index].type)})`);
  const isForm = Object.keys(forms).length > 0;
  const headers = [];
  if (!isForm) headers.push(`"content-type": "application/json"`);
  if (hasKey) headers.push("authorization: `Bearer ${process.env.API_KEY}`");
  const lines = [];
  if (isPicture(path) || files.length) lines.push(`import { readFile, writeFile } from "node:fs/promises";\n`);
  if (files.length) {
    lines.push(`const dataUrl = async (path, type) =>
  \`data:\${type};base64,\${(await readFile(path)).toString("base64")}\`;`);
  }
  lines.push(`const body = ${json};`);
  if (isForm) {
    lines.push(`const form = new FormData();
for (const [name, value] of Object.entries(body)) {
  form.append(name, typeof value === "object" ? JSON.stringify(value) : String(value));
}`);
    for (const [name, file] of Object.entries(forms)) {
      const text = JSON.stringify(file);
      lines.push(`form.append("${name}", new Blob([await readFile(${text})]), ${text});`);
    }
  }
  lines.push(`const response = await fetch(${JSON.stringify(base + path)}, {
  method: "POST",${headers.length ? `\n  headers: { ${headers.join(", ")} },` : ""}
  body: ${isForm ? "form" : "JSON.stringify(body)"},
});
const answer = await response.json();
if (!response.ok) throw new Error(answer.error.message);`);
  lines.push(isPicture(path)
    ? `await writeFile(${JSON.stringify(fileName(body))}, Buffer.from(answer.data[0].b64_json, "base64"));`
    : "console.log(answer.choices[0].message.content);");
  return `${lines.join("\n")}\n`;
}
