// The models of the server: which one answers, and which one answers beside it.
import { $, element } from "./dom.js";
import { factsOf } from "./introduction.js";
import { CONTROLS } from "./sampling.js";
import { request } from "./server.js";
import { state } from "./state.js";
import { read, write } from "./store.js";

const CHOICE = "minigpt.model";
const KIND = "minigpt.kind";
const SECOND = "minigpt.second-model";

/** Until the server answers, the page is that of the last model: what is stored can be read. */
export function assumeKind() {
  state.kind = read(KIND) === "text" ? "text" : "chat";
}

/** Asks the server. Raises Failure. */
export async function loadModels() {
  const { data } = await (await request("v1/models")).json();
  state.models = data;
  chooseModel(read(CHOICE));
}

/** The model of this name answers from now on, or the first one if there is none. */
export function chooseModel(id) {
  state.model = state.models.find((model) => model.id === id) ?? state.models[0];
  if (state.model.id === id) write(CHOICE, id);
  state.kind = state.model.chat === false ? "text" : "chat";
  if (read(KIND) !== state.kind) write(KIND, state.kind);
  chooseSecond(read(SECOND));
  CONTROLS.find((control) => control.name === "max_tokens").max = state.model.context;
}

/** The model of this name answers beside the first one. "": none. */
export function chooseSecond(id) {
  state.second = secondModels().find((model) => model.id === id) ?? null;
  if (id !== read(SECOND)) write(SECOND, id);
}

/** Those that can answer beside the first one. */
const secondModels = () =>
  state.model.chat === false
    ? []
    : state.models.filter((model) => model.chat !== false && model !== state.model);

/** What the models are that answer. Each has its name where there are two. */
function allFacts() {
  const { model, second } = state;
  if (!second) return factsOf(model);
  return [model, second].map((each) => `${each.id}: ${factsOf(each)}`).join(" · ");
}

/** Shows the names, and the fields to choose where there are several. */
export function showModels() {
  const { models, model, second } = state;
  const several = models.length > 1;
  const option = ({ id }, chosen) => element("option", { value: id, selected: id === chosen }, id);
  $("name").textContent = model?.id ?? "miniGPT";
  $("name").classList.toggle("visually-hidden", several);
  $("facts").textContent = model ? allFacts() : "Not connected";
  $("models").hidden = !several;
  if (!several) return;
  $("model").replaceChildren(...models.map((each) => option(each, model.id)));
  $("second").parentElement.hidden = !secondModels().length;
  $("second").replaceChildren(
    element("option", { value: "" }, "None"),
    ...secondModels().map((each) => option(each, second?.id)),
  );
}
