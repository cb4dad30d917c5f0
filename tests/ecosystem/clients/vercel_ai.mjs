// Vercel's AI SDK by four providers: OpenAI's chats and responses, what is compatible with OpenAI, and Anthropic's messages.

import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const [url, asked_text, environment] = process.argv.slice(2);
const asked = JSON.parse(asked_text);
const require = createRequire(`${environment}/package.json`);
const load = (name) => import(pathToFileURL(require.resolve(name)).href);
const { generateText, isStepCount, Output, stepCountIs, streamText, tool } = await load('ai');
const { z } = await load('zod');
const { createOpenAI } = await load('@ai-sdk/openai');
const { createOpenAICompatible } = await load('@ai-sdk/openai-compatible');
const { createAnthropic } = await load('@ai-sdk/anthropic');

const options = { baseURL: `${url}/v1`, apiKey: 'none' };
const openai = createOpenAI(options);
const models = {
  chats: openai.chat(asked.model),
  responses: openai.responses(asked.model),
  compatible: createOpenAICompatible({ ...options, name: 'here', supportsStructuredOutputs: true }).chatModel(asked.model),
  anthropic: createAnthropic(options)(asked.model),
};
const weather = z.object({ city: z.enum(asked.cities), notes: z.record(z.string(), z.string()).optional() });
const calls = [];
const tools = {
  get_weather: tool({
    description: asked.tool.description,
    inputSchema: weather,
    execute: async ({ city }) => {
      calls.push({ city });
      return `${city}: ${asked.degrees} degrees`;
    },
  }),
};
const common = (kind) => ({ model: models[kind], maxRetries: 0, maxOutputTokens: 512 });

const checks = {};
for (const kind of Object.keys(models)) {
  checks[`answer_of_${kind}`] = async () => (await generateText({ ...common(kind), prompt: asked.say })).text;
  checks[`stream_of_${kind}`] = async () => {
    const pieces = [];
    for await (const piece of streamText({ ...common(kind), prompt: asked.say }).textStream) pieces.push(piece);
    return pieces;
  };
  for (const streamed of [false, true]) {
    checks[`tools${streamed ? '_streamed' : ''}_of_${kind}`] = async () => {
      const texts = [];
      let messages = [];
      for (const turn of asked.turns) {
        messages = [...messages, { role: 'user', content: turn }];
        const fields = { ...common(kind), messages, tools, stopWhen: (isStepCount ?? stepCountIs)(4) };
        const result = streamed ? streamText(fields) : await generateText(fields);
        texts.push(await result.text);
        messages = [...messages, ...(await result.response).messages];
      }
      return { texts, calls: calls.splice(0) };
    };
  }
  checks[`forced_tool_of_${kind}`] = async () => {
    const result = await generateText({ ...common(kind), prompt: '?', tools, toolChoice: 'required' });
    const known = result.toolCalls.every((call) => asked.cities.includes(call.input.city));
    return result.finishReason === 'length' || (known && result.toolCalls.length > 0); // a random record may be long
  };
  checks[`object_of_${kind}`] = async () => {
    const output = Output.object({ schema: z.object({ city: z.enum(asked.cities) }) });
    return (await generateText({ ...common(kind), prompt: '?', output })).output;
  };
}

const results = {};
for (const [name, check] of Object.entries(checks)) {
  calls.length = 0;
  try {
    results[name] = { value: await check() };
  } catch (error) {
    results[name] = { error: `${error.name}: ${error.message} ${error.responseBody ?? ''}`.slice(0, 600) };
  }
}
console.log(JSON.stringify({ version: require('ai/package.json').version, results }));
