"""What openai's Python package gets from a server; runs with its oldest version and the newest."""

import json
import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)
model = client.models.list().data[0].id
messages = [{"role": "user", "content": "The river reads"}]
settings = {"model": model, "temperature": 0, "max_tokens": 20}


def joined(parts) -> str:
    """The text of a stream."""
    return "".join(part or "" for part in parts)


chat = client.chat.completions.create(messages=messages, **settings)
chat_stream = client.chat.completions.create(messages=messages, stream=True, **settings)
completion = client.completions.create(prompt="The river", echo=True, logprobs=1, **settings)
stream = client.completions.create(prompt="The river", echo=True, stream=True, **settings)
try:
    client.chat.completions.create(messages=messages, **settings | {"temperature": 5})
    error = None
except openai.BadRequestError as caught:
    error = "temperature" in str(caught)
result = {
    "chat": chat.choices[0].message.content,
    "chat_stream": joined(chunk.choices[0].delta.content for chunk in chat_stream),
    "completion": completion.choices[0].text,
    "completion_stream": joined(chunk.choices[0].text for chunk in stream),
    "first_logprob": completion.choices[0].logprobs.token_logprobs[0],
    "error": error,
}
print(json.dumps(result))
