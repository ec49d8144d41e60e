// The page at /docs, made from /v1/openapi.json. Everything goes in as text, never as markup.

const METHODS = ["get", "post", "put", "delete"];

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== null && child !== ""));
  return element;
}

/** Text whose `code` is set as code. */
function prose(text) {
  const parts = (text ?? "").trim().split("`");
  return parts.map((part, index) => (index % 2 === 1 ? make("code", {}, part) : part));
}

function paragraphs(text) {
  return (text ?? "").split("\n\n").filter((part) => part.trim() !== "").map((part) => make("p", {}, ...prose(part)));
}

const nameOf = (reference) => reference.split("/").at(-1);
const anchor = (method, path) => `${method}${path.replace(/[^a-z0-9]+/gi, "-")}`;

/** A schema in a few words; names of other schemas are links. */
function typeOf(schema) {
  if (schema.$ref) {
    const name = nameOf(schema.$ref);
    return [make("a", { href: `#${name}` }, name)];
  }
  const choices = (schema.oneOf ?? schema.anyOf)?.filter((choice) => choice.type !== "null");
  if (choices) return choices.flatMap((choice, index) => [...(index > 0 ? [" or "] : []), ...typeOf(choice)]);
  if (schema.enum) return [schema.enum.map((value) => JSON.stringify(value)).join(", ")];
  const types = [schema.type ?? "any"].flat().filter((type) => type !== "null");
  if (types.includes("array")) return ["list of ", ...typeOf(schema.items ?? {})];
  if (types.includes("object") && schema.properties) {
    return [`{ ${Object.keys(schema.properties).map((name) => JSON.stringify(name)).join(", ")} }`];
  }
  return [types.join(" or ")];
}

/** Bounds and defaults. */
function limitsOf(schema) {
  const limits = [];
  const between = (least, most, unit) => {
    if (least !== undefined && most !== undefined) limits.push(`${least} to ${most}${unit}`);
    else if (least !== undefined) limits.push(`at least ${least}${unit}`);
    else if (most !== undefined) limits.push(`at most ${most}${unit}`);
  };
  between(schema.minimum, schema.maximum, "");
  between(schema.minLength, schema.maxLength, " characters");
  between(schema.minItems, schema.maxItems, " items");
  if (schema.default !== undefined) limits.push(`default ${JSON.stringify(schema.default)}`);
  const example = schema.example ?? schema.examples?.[0];
  if (example !== undefined) limits.push(`such as ${JSON.stringify(example)}`);
  return limits.join(" · ");
}

function entry(name, schema, { required = false, description = schema.description } = {}) {
  const limits = limitsOf(schema);
  const about = [make("code", {}, name), make("small", {}, ...typeOf(schema), required ? " · required" : "")];
  const text = make("dd", {}, ...paragraphs(description), limits === "" ? null : make("small", {}, limits));
  return [make("dt", {}, ...about), text];
}

function operation(method, path, described) {
  const card = make("section", { class: "card", id: anchor(method, path) });
  const title = make("h3", {}, make("span", { class: `method ${method}` }, method.toUpperCase()), make("code", {}, path));
  card.append(title, make("p", {}, make("strong", {}, described.summary ?? "")), ...paragraphs(described.description));
  if (described.parameters?.length) {
    const entries = described.parameters.flatMap((parameter) => entry(parameter.name, parameter.schema ?? {}, parameter));
    card.append(make("h4", {}, "Parameters"), make("dl", {}, ...entries));
  }
  for (const [type, { schema }] of Object.entries(described.requestBody?.content ?? {})) {
    card.append(make("h4", {}, `Body, ${type}`), make("p", {}, ...typeOf(schema)));
  }
  const answers = Object.entries(described.responses).flatMap(([status, response]) => {
    const schemas = Object.values(response.content ?? {}).map((content) => content.schema ?? {});
    return [make("dt", {}, make("code", {}, status), make("small", {}, ...schemas.flatMap(typeOf))),
      make("dd", {}, ...prose(response.description))];
  });
  card.append(make("h4", {}, "Answers"), make("dl", {}, ...answers));
  return card;
}

function schemaCard(name, schema) {
  const card = make("section", { class: "card", id: name }, make("h3", {}, name), ...paragraphs(schema.description));
  const required = new Set(schema.required ?? []);
  const entries = Object.entries(schema.properties ?? {});
  // Beside properties, a choice only says which of them exclude one another, as the description does in words.
  for (const choice of schema.properties ? [] : (schema.oneOf ?? schema.anyOf ?? [])) {
    if (choice.properties) entries.push(...Object.entries(choice.properties));
    else card.append(make("p", {}, ...typeOf(choice)));
  }
  if (schema.enum) card.append(make("p", {}, make("code", {}, ...typeOf(schema))));
  const rows = entries.flatMap(([field, value]) => entry(field, value, { required: required.has(field) }));
  if (rows.length > 0) card.append(make("dl", {}, ...rows));
  return card;
}

function show(description) {
  document.getElementById("about").replaceChildren(...prose(description.info.description));
  const main = document.getElementById("main");
  const list = make("ul");
  main.replaceChildren();
  for (const { name, description: about } of description.tags ?? []) {
    main.append(make("h2", {}, about ?? name));
    for (const [path, methods] of Object.entries(description.paths)) {
      for (const method of METHODS.filter((method) => methods[method]?.tags?.includes(name))) {
        main.append(operation(method, path, methods[method]));
        const link = make("a", { href: `#${anchor(method, path)}` }, path);
        list.append(make("li", {}, make("span", { class: `method ${method}` }, method.toUpperCase()), link));
      }
    }
  }
  document.getElementById("contents").replaceChildren(list);
  main.append(make("h2", {}, "What goes in and comes out"));
  for (const [name, schema] of Object.entries(description.components.schemas)) main.append(schemaCard(name, schema));
  // The browser looked for its place before there was one.
  if (location.hash) document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
}

try {
  const answer = await fetch("/v1/openapi.json");
  if (!answer.ok) throw new Error(`the worker answers ${answer.status}`);
  show(await answer.json());
} catch (error) {
  document.getElementById("state").textContent = `The description cannot be loaded: ${error.message}. Reload the page.`;
}
