// Prints, as one JSON object, what OpenAI's client for Node makes of a server: node openai.mjs URL KEY CASES
import OpenAI from "openai";

const [url, key, given] = process.argv.slice(2);
const { messages, greedy, tool, room } = JSON.parse(given);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0 });
const ask = (more) => client.chat.completions.create({ model: "t0", messages, ...greedy, ...more });

async function streamed() {
  let text = "";
  let usage = null;
  for await (const chunk of await ask({ stream: true, stream_options: { include_usage: true } })) {
    text += chunk.choices[0]?.delta?.content ?? "";
    usage = chunk.usage ?? usage;
  }
  return { text, tokens: usage.completion_tokens };
}

async function refused() {
  try {
    await ask({ model: "another" });
  } catch (error) {
    return { is_not_found: error instanceof OpenAI.NotFoundError, code: error.code, status: error.status };
  }
  throw new Error("a model that is not served was not refused");
}

const called = { tools: [tool], tool_choice: "required", max_tokens: room };
const form = { type: "json_schema", json_schema: { name: "weather", schema: tool.function.parameters, strict: true } };
const runner = client.chat.completions.stream({ model: "t0", messages, ...greedy, ...called });

console.log(
  JSON.stringify({
    chat: (await ask({})).choices[0].message.content,
    streamed: await streamed(),
    called: (await ask(called)).choices[0].message.tool_calls[0].function,
    called_streaming: (await runner.finalChatCompletion()).choices[0].message.tool_calls[0].function,
    formed: (await ask({ response_format: form, max_tokens: room })).choices[0].message.content,
    response: (await client.responses.create({ model: "t0", input: messages, temperature: 0, max_output_tokens: 24 }))
      .output_text,
    models: (await client.models.list()).data.map((model) => model.id),
    refused: await refused(),
  }),
);
