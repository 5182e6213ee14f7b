// What npm's package "openai" gets from a server: the same as clients/openai_client.py.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const model = (await client.models.list()).data[0].id;
const messages = [{ role: "user", content: "The river reads" }];
const settings = { model, temperature: 0, max_tokens: 20 };

async function joined(stream, textOf) {
  let text = "";
  for await (const chunk of stream) text += textOf(chunk.choices[0]) ?? "";
  return text;
}

const chat = await client.chat.completions.create({ messages, ...settings });
const chatStream = await client.chat.completions.create({ messages, ...settings, stream: true });
const prompt = { prompt: "The river", echo: true, ...settings };
const completion = await client.completions.create({ ...prompt, logprobs: 1 });
const stream = await client.completions.create({ ...prompt, stream: true });
let error = null;
try {
  await client.chat.completions.create({ messages, ...settings, temperature: 5 });
} catch (caught) {
  error = caught.message.includes("temperature");
}
console.log(
  JSON.stringify({
    chat: chat.choices[0].message.content,
    chat_stream: await joined(chatStream, (choice) => choice.delta.content),
    completion: completion.choices[0].text,
    completion_stream: await joined(stream, (choice) => choice.text),
    first_logprob: completion.choices[0].logprobs.token_logprobs[0],
    error,
  }),
);
