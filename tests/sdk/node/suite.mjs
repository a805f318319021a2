// The official openai SDK for Node.js against a running gateway. Prints one line of JSON for each case:
// {"name", "ok", "error", "ms"}. What it talks to comes from the environment, see tests/sdk/test_node.py.
import OpenAI from 'openai';
import assert from 'node:assert/strict';

const { BASE_URL, API_KEY, LIMITED_KEY, PLAIN_KEY } = process.env;
const options = { baseURL: BASE_URL, apiKey: API_KEY, maxRetries: 0, timeout: 60_000 };
const client = new OpenAI(options);
const withKey = (apiKey, more = {}) => new OpenAI({ ...options, apiKey, ...more });
const ask = (mark, text = 'Tell me of the tide, 潮汐') => [{ role: 'user', content: `${text} [[mark:${mark}]]` }];
const chat = (mark, more = {}) => client.chat.completions.create({ model: 'chat', messages: ask(mark), ...more });
const weather = {
  type: 'function',
  function: {
    name: 'get_weather',
    parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
  },
};

async function collect(stream) {
  const events = [];
  for await (const event of stream) events.push(event);
  return events;
}
const textOf = (chunks) => chunks.map((chunk) => chunk.choices[0]?.delta?.content ?? '').join('');

const cases = [];
const test = (name, run) => cases.push({ name, run });

test('models are listed and found', async () => {
  const ids = [];
  for await (const model of client.models.list()) ids.push(model.id);
  assert.ok(ids.includes('chat'));
  assert.equal((await client.models.retrieve('chat')).object, 'model');
});

test('a chat is answered with usage', async () => {
  const answer = await chat('unary', { max_tokens: 8 });
  assert.ok(answer.choices[0].message.content.startsWith('[[mark:unary]]'));
  assert.equal(answer.usage.completion_tokens, 8);
  assert.equal(answer.choices[0].finish_reason, 'length');
});

test('a chat is streamed with usage', async () => {
  const chunks = await collect(await chat('stream', { stream: true, stream_options: { include_usage: true } }));
  assert.ok(textOf(chunks).startsWith('[[mark:stream]]'));
  assert.equal(chunks.at(-1).usage.completion_tokens, 12);
  assert.equal(chunks.filter((chunk) => chunk.choices[0]?.finish_reason === 'stop').length, 1);
});

test('several choices and stop strings', async () => {
  const answer = await chat('n', { n: 2, stop: ['.'] });
  assert.equal(answer.choices.length, 2);
  for (const choice of answer.choices) assert.ok(!choice.message.content.includes('.'));
});

test('probabilities of tokens', async () => {
  const answer = await chat('p', { logprobs: true, top_logprobs: 2 });
  assert.equal(answer.choices[0].logprobs.content.length, 12);
  assert.equal(answer.choices[0].logprobs.content[0].top_logprobs.length, 2);
});

test('a tool is called', async () => {
  const answer = await chat('tool', { tools: [weather], tool_choice: 'required' });
  const [call] = answer.choices[0].message.tool_calls;
  assert.equal(answer.choices[0].finish_reason, 'tool_calls');
  assert.equal(JSON.parse(call.function.arguments).city, '[[mark:tool]]');
});

test('arguments of a tool are streamed', async () => {
  const messages = ask('args', 'get_weather');
  const stream = client.chat.completions.stream({ model: 'chat', messages, tools: [weather] });
  const deltas = [];
  stream.on('tool_calls.function.arguments.delta', (event) => deltas.push(event.arguments_delta));
  const [call] = (await stream.finalChatCompletion()).choices[0].message.tool_calls;
  assert.equal(deltas.join(''), call.function.arguments);
  assert.equal(JSON.parse(call.function.arguments).city, '[[mark:args]]');
  assert.ok(deltas.length > 3);
});

test('a form is kept', async () => {
  const schema = { type: 'object', properties: { level: { type: 'integer' } }, required: ['level'] };
  const response_format = { type: 'json_schema', json_schema: { name: 'tide', schema } };
  const answer = await chat('form', { response_format });
  assert.ok(Number.isInteger(JSON.parse(answer.choices[0].message.content).level));
});

test('content in parts', async () => {
  const content = [{ type: 'text', text: 'one' }, { type: 'text', text: '[[mark:parts]]' }];
  const answer = await client.chat.completions.create({ model: 'chat', messages: [{ role: 'user', content }] });
  assert.ok(answer.choices[0].message.content.startsWith('[[mark:parts]]'));
});

test('texts are continued', async () => {
  const given = { model: 'chat', prompt: ['a [[mark:0]]', 'b [[mark:1]]'], max_tokens: 4 };
  const answer = await client.completions.create(given);
  assert.deepEqual(answer.choices.map((choice) => choice.text.startsWith(`[[mark:${choice.index}]]`)), [true, true]);
  const pieces = await collect(await client.completions.create({ ...given, prompt: 'a [[mark:0]]', stream: true }));
  assert.ok(pieces.map((piece) => piece.choices[0]?.text ?? '').join('').startsWith('[[mark:0]]'));
});

test('embeddings', async () => {
  const packed = await client.embeddings.create({ model: 'chat', input: ['tide', '潮汐'] }); // base64, decoded
  const plain = await client.embeddings.create({ model: 'chat', input: ['tide', '潮汐'], encoding_format: 'float' });
  assert.equal(packed.data.length, 2);
  packed.data[0].embedding.forEach((value, i) => assert.ok(Math.abs(value - plain.data[0].embedding[i]) < 1e-6));
});

test('the responses api', async () => {
  const given = { model: 'chat', input: 'tide [[mark:r]]' };
  assert.ok((await client.responses.create(given)).output_text.startsWith('[[mark:r]]'));
  const events = await collect(await client.responses.create({ ...given, stream: true }));
  assert.equal(events[0].type, 'response.created');
  assert.equal(events.at(-1).type, 'response.completed');
  assert.deepEqual(events.map((event) => event.sequence_number), events.map((_, i) => i));
});

test('an unknown model', async () => {
  const failure = await chat('x', { model: 'nobody' }).catch((error) => error);
  assert.ok(failure instanceof OpenAI.NotFoundError);
  assert.equal(failure.code, 'model_not_found');
});

test('a wrong key', async () => {
  const failure = await withKey('tg-key000000001-guess').models.list().catch((error) => error);
  assert.ok(failure instanceof OpenAI.AuthenticationError);
});

test('a key without the scope', async () => {
  const asked = { model: 'chat@1.0.0', messages: ask('x') };
  const failure = await withKey(PLAIN_KEY).chat.completions.create(asked).catch((error) => error);
  assert.ok(failure instanceof OpenAI.PermissionDeniedError);
});

test('a bad request', async () => {
  const failure = await chat('x', { temperature: 9 }).catch((error) => error);
  assert.ok(failure instanceof OpenAI.BadRequestError);
});

test('a limited key, and coming back when told to', async () => {
  const asked = { model: 'chat', messages: ask('limit') };
  const hasty = withKey(LIMITED_KEY);
  const results = await Promise.allSettled(Array.from({ length: 120 }, () => hasty.chat.completions.create(asked)));
  const refused = results.filter((result) => result.status === 'rejected').map((result) => result.reason);
  assert.ok(refused.length > 0 && refused.every((error) => error instanceof OpenAI.RateLimitError));
  assert.ok(Number(refused[0].headers.get('retry-after')) >= 1);
  const patient = withKey(LIMITED_KEY, { maxRetries: 4 });
  assert.ok((await patient.chat.completions.create(asked)).choices[0].message.content);
});

test('an engine that fails', async () => {
  const failure = await chat('x', { model: 'failing' }).catch((error) => error);
  assert.ok(failure instanceof OpenAI.InternalServerError);
  assert.equal(failure.status, 503);
});

test('a stream that breaks off', async () => {
  const stream = await chat('x', { model: 'cut', stream: true });
  await assert.rejects(collect(stream), OpenAI.APIError);
});

test('a time limit of the client', async () => {
  const asked = { model: 'silent', messages: ask('x') };
  const failure = await withKey(API_KEY, { timeout: 300 }).chat.completions.create(asked).catch((error) => error);
  assert.ok(failure instanceof OpenAI.APIConnectionTimeoutError);
});

test('a time limit of the request', async () => {
  const headers = { 'x-request-timeout': '0.4' };
  const asked = { model: 'silent', messages: ask('x') };
  const failure = await client.chat.completions.create(asked, { headers }).catch((error) => error);
  assert.equal(failure.status, 504);
});

test('nobody listens', async () => {
  const lost = new OpenAI({ ...options, baseURL: 'http://127.0.0.1:9/v1' });
  const failure = await lost.models.list().catch((error) => error);
  assert.ok(failure instanceof OpenAI.APIConnectionError);
});

test('leaving a stream', async () => {
  const stream = await chat('x', { model: 'long', stream: true });
  for await (const chunk of stream) {
    assert.ok(chunk.id);
    break; // leaves the loop, which aborts the request; pytest looks at the engine
  }
});

test('headers', async () => {
  const { data, response, request_id } = await chat('head').withResponse();
  assert.equal(response.headers.get('x-request-id'), request_id);
  assert.equal(response.headers.get('x-tidegate-version'), '1.0.0');
  assert.equal(data._request_id, request_id);
});

test('a crowd of fifty', async () => {
  const one = async (i) => {
    const mark = `node-${i}`;
    const stream = i % 2 === 0;
    const answer = await chat(mark, { stream });
    const text = stream ? textOf(await collect(answer)) : answer.choices[0].message.content;
    assert.ok(text.startsWith(`[[mark:${mark}]]`), `${mark}: ${text.slice(0, 40)}`);
  };
  for (let round = 0; round < 4; round++) {
    await Promise.all(Array.from({ length: 50 }, (_, i) => one(round * 50 + i)));
  }
});

for (const { name, run } of cases) {
  const began = performance.now();
  let error = null;
  try {
    await run();
  } catch (raised) {
    error = `${raised?.name}: ${raised?.message}`;
  }
  console.log(JSON.stringify({ name, ok: error === null, error, ms: Math.round(performance.now() - began) }));
}
