// Prints, as one JSON object, what Vercel's AI SDK makes of a server: node ai.mjs URL KEY CASES
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateObject, generateText, jsonSchema, streamText, tool } from "ai";

const [url, key, given] = process.argv.slice(2);
const cases = JSON.parse(given);
const provider = createOpenAICompatible({
  name: "bestiary",
  baseURL: `${url}/v1`,
  apiKey: key,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const text = cases.messages[0].content;
const schema = jsonSchema(cases.tool.function.parameters);
const common = { model: provider("t0"), prompt: text, temperature: 0, maxRetries: 0 };
const called = {
  ...common,
  tools: { weather: tool({ description: "The weather in a city.", inputSchema: schema }) },
  toolChoice: "required",
  maxOutputTokens: cases.room,
};

async function refused() {
  try {
    await generateText({ ...common, model: provider("another") });
  } catch (error) {
    return { is_api_error: APICallError.isInstance(error), status: error.statusCode, message: error.message };
  }
  throw new Error("a model that is not served was not refused");
}

const whole = await generateText({ ...common, maxOutputTokens: 24 });
const stream = streamText({ ...common, maxOutputTokens: 24 });
let streamed = "";
for await (const piece of stream.textStream) streamed += piece;
const streamedCall = streamText(called);

console.log(
  JSON.stringify({
    text: whole.text,
    tokens: whole.usage.outputTokens,
    reason: whole.finishReason,
    streamed,
    streamed_tokens: (await stream.usage).outputTokens,
    object: (await generateObject({ ...common, schema, maxOutputTokens: cases.room })).object,
    called: (await generateText(called)).toolCalls[0],
    called_streaming: (await streamedCall.toolCalls)[0],
    refused: await refused(),
  }),
);
